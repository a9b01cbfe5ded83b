"""Encodings: 320 files of sixteen kinds, each read to the letter or asked about; and what is told of it."""

from collections import Counter
from pathlib import Path

import pytest

from support.encoded_texts import EACH, encoded_texts
from weitiao.core.example import BadRow
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find_module
from weitiao.data.encodings import encoding_of
from weitiao.data.read import Reading, read_sources
from weitiao.data.records import Reader

SHORT = {"gb18030, 8 characters", "big5, 8 characters"}  # of these, asking is allowed


def reading(path: Path, objective: str = "sft", allowed: float = 1.0) -> Reading:
    return read_sources([Source(path=str(path))], create("objective", objective), allowed)


def outcome(path: Path, raw: bytes, text: str | None) -> str:
    path.write_bytes(raw)
    items = list(find_module(Reader, "text").read(path, "auto"))
    if any(isinstance(x, BadRow) for x in items):
        assert all(x.code == "encoding" for x in items if isinstance(x, BadRow))
        return "asked"
    return "right" if "\f".join(x.fields["text"] for x in items) == text else "wrong"


def test_320_files(tmp_path: Path) -> None:
    outcomes = Counter((x.kind, outcome(tmp_path / "a.txt", x.raw, x.text), x.text is None) for x in encoded_texts(seed=0))
    assert outcomes.total() == 320 and len({kind for kind, _, _ in outcomes}) == 16
    for (kind, result, is_foreign), n in outcomes.items():
        if is_foreign:
            assert result == "asked", f"{kind}: {n} files were read as Chinese"
        elif kind in SHORT:
            assert result in ("right", "asked"), f"{kind}: {n} files read wrongly"
        else:
            assert (result, n) == ("right", EACH), f"{kind}: {outcomes}"
    assert sum(n for (kind, result, _), n in outcomes.items() if kind in SHORT and result == "right") >= 25


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 31))
def test_never_wrong(tmp_path: Path, seed: int) -> None:
    for x in encoded_texts(seed):
        result = outcome(tmp_path / "a.txt", x.raw, x.text)
        assert result == "asked" if x.text is None else result in ("right", "asked"), x.kind


def test_file_level_decision_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("prompt,completion\n今天天气怎么样,很好\n你去哪里,回家\n".encode("gb18030"))
    told = [x for x in reading(file).findings() if x.name == "encoding"]
    assert [(x.level, str(x.message)) for x in told] == [
        ("warning", f"{file} is read as gb18030: only so its characters are those of Chinese texts")
    ]
    file.write_text("prompt,completion\n今天天气怎么样,很好\n", encoding="utf-8-sig")
    assert not [x for x in reading(file).findings() if x.name == "encoding"]


def test_odd_lines_are_read_and_told(tmp_path: Path) -> None:
    rows = [f'{{"prompt": "第{i}个问题是什么", "completion": "这是第{i}个回答"}}\n' for i in range(9)]
    lines = [x.encode("gb18030" if i in (3, 6) else "utf-8") for i, x in enumerate(rows)]
    lines.insert(5, b'{"prompt": "caf\xe9 noir.", "completion": "x"}\n')
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    result = reading(tmp_path / "a.jsonl")
    assert [x.example.answer for x in result.examples] == [f"这是第{i}个回答" for i in range(9)]
    assert [(x.where.line, x.code) for x in result.bad] == [(6, "encoding")]
    told = [str(x.message) for x in result.findings() if x.name == "encoding"]
    assert told == [f"{tmp_path}/a.jsonl: 2 lines are not utf-8 but gb18030, and are read as such (line 4, 8)"]
    assert encoding_of(tmp_path / "a.jsonl").odd == ((4, "gb18030"), (8, "gb18030"))


def test_line_in_utf_8_by_chance(tmp_path: Path) -> None:
    """联通 in GB18030 is UTF-8 for two other letters; the rest of the file tells."""
    text = "公司\n联通\n移动和电信的用户都说很好\n"
    (tmp_path / "a.txt").write_bytes(text.encode("gb18030"))
    (record,) = find_module(Reader, "text").read(tmp_path / "a.txt", "auto")
    assert record.fields["text"] == text


def test_row_of_a_table_that_cannot_be_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b'prompt,completion\n"caf\xe9 noir.",x\na,b\n')
    result = reading(file)
    assert [x.example.answer for x in result.examples] == ["b"]
    assert [(x.where.line, x.where.offset, x.where.length, x.code) for x in result.bad] == [(2, 18, 15, "encoding")]


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide(tmp_path: Path, codec: str) -> None:
    text = "prompt,completion\r\nhello there,world\r\n今天天气怎么样,很好\r\n"
    (tmp_path / "a.csv").write_bytes(text.encode(codec))
    assert [x.example.answer for x in reading(tmp_path / "a.csv").examples] == ["world", "很好"]
