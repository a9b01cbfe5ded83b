"""Workbooks, Word documents, PDFs and Arrow files: what is read, and what is told of the rest."""

import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from support.small_pdf import EMPTY, IMAGE, pdf
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import BadRow
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find_module
from weitiao.data.read import Reading, read_sources
from weitiao.data.records import Reader, Record

HEADER = ["id", "文本", "标签"]


def read(path: Path) -> list[Any]:
    return list(find_module(Reader, path.suffix[1:].replace("feather", "arrow")).read(path, "auto"))


def findings(path: Path) -> dict[str, str]:
    return {x.name: str(x.message) for x in find_module(Reader, path.suffix[1:]).findings(path)}


def reading(path: Path, objective: str = "causal_lm", allowed: float = 1.0) -> Reading:
    return read_sources([Source(path=str(path))], create("objective", objective), allowed)


# -- workbooks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def workbook(tmp_path: Path) -> tuple[Any, Path]:
    pytest.importorskip("python_calamine")
    return pytest.importorskip("openpyxl").Workbook(), tmp_path / "a.xlsx"


def test_workbook(workbook: tuple[Any, Path]) -> None:
    book, path = workbook
    sheet = book.active
    for row in ([], HEADER, [1, "很好", 2.0], [2.5, "a\nb", True], [], [None, "x", datetime.date(2026, 1, 2)]):
        sheet.append(row)
    book.save(path)
    items = read(path)
    assert [x.fields for x in items] == [
        {"id": 1, "文本": "很好", "标签": 2},
        {"id": 2.5, "文本": "a\nb", "标签": True},
        {"id": None, "文本": "x", "标签": "2026-01-02"},
    ]
    assert [x.where.line for x in items] == [3, 4, 6] and findings(path) == {}


def test_lost_digits_are_named(workbook: tuple[Any, Path]) -> None:
    book, path = workbook
    for row in (HEADER, [110101199001011237, "a", 1], ["110101199001011237", "b", 10**14]):
        book.active.append(row)
    book.save(path)
    first, second = read(path)
    assert second.fields["id"] == "110101199001011237" and isinstance(first.fields["id"], float)
    assert findings(path)["lost_digits"].startswith(f"{path}: column 'id' has numbers of more than 15 digits in 1 rows")
    assert any(x.name == "lost_digits" for x in reading(path).checks)


def test_formulas_and_errors_without_value_are_named(workbook: tuple[Any, Path]) -> None:
    book, path = workbook
    for row in (HEADER, ["=1+1", "a", "#N/A"]):
        book.active.append(row)
    book.save(path)
    told = findings(path)
    assert "1 cells hold a formula without its value (A2)" in told["formulas"]
    assert "1 cells hold an error (C2)" in told["cell_errors"]


def test_sheets(workbook: tuple[Any, Path]) -> None:
    book, path = workbook
    for row in (HEADER, [1, "a", "x"]):
        book.active.append(row)
    for name, rows in {"二": (HEADER, [2, "b", "y"]), "Notes": (["note"], ["n"]), "Empty": ()}.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    book.save(path)
    assert [(x.where.file, x.where.line, x.fields["id"]) for x in read(path)] == [
        (str(path), 2, 1), (f"{path}#二", 2, 2)
    ]  # fmt: skip
    assert findings(path)["sheets"].endswith("sheets that are not read: Notes")


def test_row_wider_than_the_header(workbook: tuple[Any, Path]) -> None:
    book, path = workbook
    for row in (HEADER, [1, "a", "x", "y"], [2, "b", "z"]):
        book.active.append(row)
    book.save(path)
    bad, good = read(path)
    assert isinstance(bad, BadRow) and bad.code == "width" and good.fields["id"] == 2


def test_workbook_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    for content in (b"", b"PK\x03\x04", b"id,text\n1,a\n"):
        (tmp_path / "a.xlsx").write_bytes(content or b" ")
        with pytest.raises(DataError, match="a.xlsx"):
            read(tmp_path / "a.xlsx")


@pytest.mark.parametrize(("ending", "package"), [(".xlsx", "python_calamine"), (".pdf", "pypdfium2")])
def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, package: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / f"a{ending}").write_bytes(b"x")
    with pytest.raises(
        RecipeError, match=rf"needs the package '{package}'. Install it with: pip install 'weitiao\[docs\]'"
    ):
        read(tmp_path / f"a{ending}")


def test_bomb_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.docx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", bytes(300 << 20))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(tmp_path / "a.docx")


# -- Word -------------------------------------------------------------------------------------------------------------


def test_word_document(tmp_path: Path) -> None:
    document = pytest.importorskip("docx").Document()
    document.add_heading("总标题", 0)
    document.add_heading("第一章", 1)
    document.add_paragraph("第一段 a\tb")
    document.add_paragraph("一项", style="List Bullet")
    table = document.add_table(2, 3)
    for cell, text in ((table.cell(0, 0), "a|b"), (table.cell(0, 1), "两\n行"), (table.cell(1, 2), "z")):
        cell.text = text
    table.cell(1, 0).merge(table.cell(1, 1)).text = "merged"
    document.add_paragraph("")
    document.add_heading("1.1 深", 2)
    document.add_paragraph("text")
    document.save(str(tmp_path / "a.docx"))
    sections = read(tmp_path / "a.docx")
    assert [x.fields["text"] for x in sections] == [
        "# 总标题\n\n# 第一章\n\n第一段 a\tb\n\n- 一项\n\n"
        "| a\\|b | 两 行 |  |\n| --- | --- | --- |\n| merged |  | z |",
        "## 1.1 深\n\ntext",
    ]  # fmt: skip
    assert [x.where.line for x in sections] == [1, 7]
    assert [x.example.text for x in reading(tmp_path / "a.docx").examples] == [x.fields["text"] for x in sections]


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def word(path: Path, body: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", f"<w:document {W}><w:body>{body}</w:body></w:document>")
    return path


def run(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


def test_insertions_count_and_deletions_do_not(tmp_path: Path) -> None:
    body = (
        f"<w:p><w:pPr><w:outlineLvl w:val='1'/></w:pPr>{run('Head')}</w:p>"
        f"<w:p>{run('kept ')}<w:ins>{run('inserted ')}</w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
        f"<w:sdt><w:sdtContent><w:p>{run('in a control')}</w:p></w:sdtContent></w:sdt>"
        f"<w:p>{run('note')}<w:r><w:footnoteReference w:id='1'/></w:r></w:p>"
    )
    path = word(tmp_path / "a.docx", body)
    (section,) = read(path)
    assert section.fields["text"] == "## Head\n\nkept inserted\n\nin a control\n\nnote"
    assert "not read are 1 footnotes, 0 endnotes and 0 comments" in findings(path)["footnotes"]


@pytest.mark.parametrize(
    "document", ["<w:document", "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&a;</x>", f"<w:document {W}>{'<w:r>' * 5000}"]
)
def test_word_document_that_is_none(tmp_path: Path, document: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.docx", "w") as archive:
        archive.writestr("word/document.xml", document)
    with pytest.raises(DataError, match="a.docx"):
        read(tmp_path / "a.docx")
    body = "<w:sdt>" * 900 + "</w:sdt>" * 900
    with pytest.raises(DataError, match="nested too deeply"):
        read(word(tmp_path / "b.docx", body))


# -- PDF --------------------------------------------------------------------------------------------------------------


def test_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("首页：高人\nsecond line", IMAGE, EMPTY, "末页"))
    first, scan, last = read(path)
    assert (first.fields, first.where.line) == ({"text": "首页：高人\nsecond line"}, 1)  # not ⾸⻚⾼⼈
    assert isinstance(scan, BadRow) and (scan.code, scan.where.line) == ("scan", 2) and "it is a scan" in str(scan.reason)
    assert (last.fields, last.where.line) == ({"text": "末页"}, 4)
    assert len(reading(path).examples) == 2
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be used .*line 2: the page has no text: it is a scan"):
        reading(path, allowed=0.01)


def test_damaged_pdf(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    whole = pdf("一", "二")
    for i in range(0, len(whole), 37):
        (tmp_path / "a.pdf").write_bytes(whole[:i] + b"\xff" * 9 + whole[i + 40 :])
        try:
            assert all(isinstance(x, (Record, BadRow)) for x in read(tmp_path / "a.pdf"))
        except DataError as error:
            assert "a.pdf" in str(error)


# -- Arrow ------------------------------------------------------------------------------------------------------------

TABLE = pa.Table.from_pylist([{"text": "一", "label": "x"}, {"text": "二", "label": None}])


def arrow(stream: bool) -> bytes:
    raw = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(raw, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=1)
    return raw.getvalue()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ending", [".arrow", ".feather"])
def test_arrow(tmp_path: Path, stream: bool, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(arrow(stream))
    items = read(tmp_path / f"a{ending}")
    assert [x.fields for x in items] == TABLE.to_pylist() and [x.where.line for x in items] == [1, 2]


def test_damaged_arrow(tmp_path: Path) -> None:
    """A damaged file is an error, or its rows are read: pyarrow follows no offset out of the file."""
    for whole in (arrow(True), arrow(False)):
        for i in range(len(whole)):
            (tmp_path / "a.arrow").write_bytes(whole[:i] + bytes([whole[i] ^ 0xFF]) + whole[i + 1 :])
            try:
                read(tmp_path / "a.arrow")
            except DataError as error:
                assert "a.arrow" in str(error)
