"""Files as spreadsheets, notebooks and annotation tools write them: read right, or one sentence that says what they are."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from weitiao.core.errors import DataError
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.read import Reading, files_of, read_sources

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c, d", "completion": 'e "f" ]'}]
A, B = (json.dumps(x) for x in ROWS)


def read(path: Path, content: str | bytes, objective: str = "sft", **settings: Any) -> Reading:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_sources([Source(path=str(path), **settings)], create("objective", objective), 1.0)


def pairs(reading: Reading) -> list[tuple[str, str]]:
    return [(x.example.turns[0].content, x.example.answer) for x in reading.examples]


WHOLE = [(x["prompt"], x["completion"]) for x in ROWS]


# -- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".JSON", ".Jsonl", ".ndjson"])
@pytest.mark.parametrize(
    "text",
    [
        f"{A}\n{B}\n",
        f"\n\n{A}\r\n\r\n{B}",
        f"{A}\r{B}\r",
        f"\ufeff{A}\n{B}",
        f"[{A},{B}]",
        f"[\n{A},\n{B}\n]\n",
        f"\ufeff[{A},\n{B}]",
        f"[\n{A},\n{B},\n]",
        f"[{A[:-1]},}}, {B}]",
        f"{A},\n{B},\n",
        f"{A},\n{B}",
        json.dumps(ROWS, indent=2),
        "\n".join(json.dumps(x, indent=2) for x in ROWS),
        ",\n".join(json.dumps(x, indent=2) for x in ROWS),
        json.dumps({"train": ROWS}),
        json.dumps({"version": "1", "data": ROWS}, indent=1),
    ],
)
def test_json_is_read_whatever_its_form(tmp_path: Path, text: str, ending: str) -> None:
    reading = read(tmp_path / f"x{ending}", text)
    assert pairs(reading) == WHOLE and not reading.bad


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"[\n{A},\n{B}\n", "not JSON: Expecting ',' delimiter at line 4, column 1"),
        (f"[{A}\n{B}]", "not JSON: Expecting ',' delimiter at line 2, column 1"),
        (f"[\n{A}", "not JSON: Expecting ',' delimiter"),
        (f"[\n{A[:-2]},\n{B}\n]", "not JSON: Invalid control character at line 2"),
        ("\n".join(map(str, ROWS)), "a dict as Python prints it, not JSON: write it with json.dumps"),
        (str(ROWS), "a dict as Python prints it, not JSON"),
        (json.dumps({"train": ROWS, "test": ROWS}), "one object with several lists of rows (train, test)"),
        (json.dumps({"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}), "a table by columns"),
    ],
)
def test_json_of_no_form_is_refused_as_a_whole(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / "x.jsonl", text)
    assert "x.jsonl has no usable row. First error: line 1: " in str(error.value) and message in str(error.value)


def test_no_row_of_a_broken_document_is_kept(tmp_path: Path) -> None:
    turns = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    text = json.dumps([turns] * 3, indent=1)
    for i in range(len(text) - 1):
        with pytest.raises(DataError):
            read(tmp_path / "x.json", text[:i] or " ")


@pytest.mark.parametrize("first", ["{broken", '{"prompt": "a"', "[1, 2", "garbage", "[" * 100_000, '["a", "b"]', "3"])
def test_broken_first_line_costs_one_row(tmp_path: Path, first: str) -> None:
    reading = read(tmp_path / "x.jsonl", "\n".join([first, A, B, A, B]))
    assert pairs(reading) == WHOLE * 2 and [x.where.line for x in reading.bad] == [1]


def test_numbers_that_are_none(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "completion": NaN}', '{"prompt": "a", "completion": Infinity}', A]
    reading = read(tmp_path / "x.jsonl", "\n".join([*lines, '{"prompt": ' + "9" * 5000 + ', "completion": "b"}']))
    assert pairs(reading) == WHOLE[:1] and len(reading.bad) == 3


def test_key_twice_is_a_bad_row(tmp_path: Path) -> None:
    reading = read(tmp_path / "x.jsonl", A + '\n{"prompt": "a", "completion": "b", "prompt": "c"}')
    assert [str(x.reason) for x in reading.bad] == ["the key 'prompt' is there twice"]


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".CSV"])
def test_delimiters(tmp_path: Path, delimiter: str, ending: str) -> None:
    file = tmp_path / f"x{ending}"
    with open(file, "w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.DictWriter(opened, ["prompt", "completion"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    assert pairs(read(file, file.read_bytes())) == WHOLE


@pytest.mark.parametrize(
    "text",
    [
        'sep=;\nprompt;completion\na;b\n"c, d";"e ""f"" ]"\n',
        '"prompt","completion"\n"a","b"\n"c, d","e \\"f\\" ]"\n',
        'prompt, completion\na, b\n"c, d", "e ""f"" ]"\n',
        ' "prompt" ,completion,\na,b,\n"c, d","e ""f"" ]",\n',
        'prompt,completion\ra,b\r"c, d","e ""f"" ]"\r',
        ',prompt,completion\n0,a,b\n1,"c, d","e ""f"" ]"\n',
    ],
)
def test_tables_of_spreadsheets(tmp_path: Path, text: str) -> None:
    assert pairs(read(tmp_path / "x.csv", text)) == WHOLE


def test_quotes_in_tsv_are_characters(tmp_path: Path) -> None:
    reading = read(tmp_path / "x.tsv", 'prompt\tcompletion\n"hello\tb\nc\td\n"e" f\tg"\n')
    assert pairs(reading) == [('"hello', "b"), ("c", "d"), ('"e" f', 'g"')]


def test_one_column_with_commas_is_not_cut(tmp_path: Path) -> None:
    reading = read(tmp_path / "x.csv", "text\none; two\nthree, four\nfive | six\n", "causal_lm")
    assert [x.example.full_text for x in reading.examples] == ["one; two", "five | six"] and len(reading.bad) == 1


def test_broken_header_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the header is not CSV"):
        read(tmp_path / "x.csv", '"prompt,completion\na,b\n')


def test_decimal_comma_is_named(tmp_path: Path) -> None:
    reading = read(tmp_path / "x.csv", "text;score\na;3,5\nb;4\nc;1_0\n", "regression")
    assert [str(x.reason) for x in reading.bad] == [
        "column 'score' is '3,5': write numbers with a decimal point", "column 'score' is '1_0', not a number"
    ]  # fmt: skip


@pytest.mark.parametrize("cell", ["['a', 'b']", '["a", "b"]', "[ 'a' , 'b' ]"])
def test_list_in_a_cell(tmp_path: Path, cell: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    (example,) = (x.example for x in read(tmp_path / "x.csv", f"text,label\nw,{quoted}\n", "classification").examples)
    assert example.labels == ("a", "b")
    text = f"tokens,tags\n{quoted},\"['O', 'B-x']\"\n"
    (example,) = (x.example for x in read(tmp_path / "x.csv", text, "token_classification").examples)
    assert example.tags == ("O", "B-x") and example.text == "a b"


@pytest.mark.parametrize("cell", ["['a' 'b']", '["a" "b"]', "[0 1]", "[ 1. 0.]", "['a'\n 'b']"])
def test_list_of_numpy_is_a_bad_row(tmp_path: Path, cell: str) -> None:
    """Python reads ['a' 'b'] as the one word ab."""
    quoted = '"' + cell.replace('"', '""') + '"'
    reading = read(tmp_path / "x.csv", f"text,label\nw,{quoted}\nv,x\n", "classification")
    assert len(reading.examples) == 1 and "write a list with commas" in str(reading.bad[0].reason)
    rows = f"tokens,tags\n\"['a', 'b']\",\"['O', 'O']\"\n{quoted},{quoted}\n"
    reading = read(tmp_path / "x.csv", rows, "token_classification")
    assert len(reading.examples) == 1 and "not a list of tokens" in str(reading.bad[0].reason)


# -- text, CoNLL, SQuAD -----------------------------------------------------------------------------------------------


def test_form_feeds_in_utf_16(tmp_path: Path) -> None:
    text = "第一 ఌ\fone\n\ftwo"  # U+0C0C has a byte that is a form feed in UTF-8
    reading = read(tmp_path / "x.txt", text.encode("utf-16"), "causal_lm", encoding="utf-16")
    assert [x.example.full_text for x in reading.examples] == ["第一 ఌ", "one\n", "two"]


def test_comments_of_conll(tmp_path: Path) -> None:
    text = "# id 7 domain=en\nAda _ _ B-PER\n\n# _ _ O\nx _ _ O\n\n"
    reading = read(tmp_path / "x.conll", text, "token_classification")
    assert [x.example.text for x in reading.examples] == ["Ada", "# x"]


def test_numbered_words_of_conll_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the first column counts the words"):
        read(tmp_path / "x.conll", "1\tAda\tB-PER\tO\n2\tmet\tO\tO\n3\tBo\tB-PER\tO\n", "token_classification")


SQUAD = {"title": "t", "paragraphs": [{"context": "by Goya", "qas": [
    {"id": "1", "question": "who?", "answers": [{"text": "Goya", "answer_start": 3}]}]}]}  # fmt: skip


@pytest.mark.parametrize(
    "document",
    [
        {"data": [SQUAD]},
        [SQUAD],
        {"version": "v2.0", "data": [SQUAD]},
        [{"question": "who?", "context": "by Goya", "answers": {"text": ["Goya"], "answer_start": [3]}}],
        [{"question": "who?", "context": "by Goya", "answers": {"text": "Goya", "answer_start": 3}}],
        [{"question": "who?", "context": "by Goya", "answers": ["Goya"]}],
        [{"question": "who?", "context": "by Goya", "answers": "{'text': ['Goya'], 'answer_start': [3]}"}],
        [{"question": "who?", "context": "by Goya", "answer": {"text": "Goya", "answer_start": 3}}],
        [{"question": "who?", "context": "by Goya", "answer": "Goya", "answer_start": [3], "is_impossible": False}],
    ],
)
def test_forms_of_squad(tmp_path: Path, document: Any) -> None:
    for name in ("x.json", "x.jsonl", "X.JSON"):
        (example,) = (x.example for x in read(tmp_path / name, json.dumps(document), "question_answering").examples)
        assert example.answers == ((3, "Goya"),)


@pytest.mark.parametrize(
    ("row", "usable"),
    [
        ({"answers": [], "is_impossible": True}, True),
        ({"answer": "", "is_impossible": True}, True),
        ({"answer": None}, True),
        ({"answer": float("nan")}, True),
        ({"answers": {"text": ["Goya"], "answer_start": [3]}, "is_impossible": True}, False),
        ({"answers": [], "is_impossible": False}, False),
        ({"answer": ""}, False),
    ],
)
def test_impossible_questions(tmp_path: Path, row: dict, usable: bool) -> None:
    good = {"question": "who?", "context": "by Goya", "answers": ["Goya"], "answer": "Goya"}
    first = {key: value for key, value in good.items() if key in ("question", "context", next(iter(row)))}
    lines = [json.dumps(x) for x in (first, {"question": "who?", "context": "by Goya", **row})]
    reading = read(tmp_path / "x.jsonl", "\n".join(lines), "question_answering")
    assert len(reading.examples) == 1 + usable and len(reading.bad) == 1 - usable


# -- other kinds of files ---------------------------------------------------------------------------------------------


def zipped(*names: str) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name in names:
            archive.writestr(name, "<x/>")
    return raw.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            zipped("[Content_Types].xml", "xl/workbook.xml"),
            "(Excel (.xlsx)): give it the ending .xlsx, or set format: xlsx",
        ),
        (zipped("[Content_Types].xml", "word/document.xml"), "(Word (.docx)): give it the ending .docx"),
        (b"%PDF-1.7", "(PDF): give it the ending .pdf"),
        (b"PAR1...", "(Parquet): give it the ending .parquet"),
        (b"7z\xbc\xaf\x27\x1c...", "(7z): unpack it first"),
        (b"\xd0\xcf\x11\xe0...", "or with a password): save it as .xlsx or .docx"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "(Git LFS pointer): fetch the file itself"),
        (b"\n<!DOCTYPE html><html>", "(web page): download the file itself"),
        (gzip.compress(b"x" * 257 + b"ustar", mtime=0), "(tar): unpack it first"),
    ],
)
@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.jsonl.gz"])
def test_files_of_another_kind(tmp_path: Path, content: bytes, words: str, name: str) -> None:
    with pytest.raises(DataError) as error:
        read(tmp_path / name, content)
    assert f"{name} is a file of another kind " in str(error.value) and words in str(error.value)


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl.txt", "x.csv", "x.conll"])
@pytest.mark.parametrize("text", [f"{A}\n{B}\n", f"[\n{A},\n{B}]", f"\ufeff{A}"])
def test_json_under_another_ending(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(DataError, match="holds JSON, and its ending says .*: set format: jsonl"):
        read(tmp_path / name, text, "causal_lm")
    assert len(read(tmp_path / name, text, format="jsonl").examples) in (1, 2)
    if name.endswith(".txt"):
        assert len(read(tmp_path / name, text, "causal_lm", format="text").examples) == 1


def test_braces_in_a_text_are_no_json(tmp_path: Path) -> None:
    assert len(read(tmp_path / "x.txt", '{"a": 1}\nis JSON.\n', "causal_lm").examples) == 1


def test_upper_case_endings_in_a_folder(tmp_path: Path) -> None:
    for name in ("a.JSONL", "b.Csv"):
        (tmp_path / name).write_text("")
    assert [x.name for x in files_of(Source(path=str(tmp_path)))] == ["a.JSONL", "b.Csv"]


@pytest.mark.parametrize("name", ["~nobody-of-this-name/a.wav", "x" * 5000, "a\0b", ".", "https://example.org/a.wav"])
def test_name_that_is_no_audio_file(tmp_path: Path, name: str) -> None:
    reading = read_bad(tmp_path / "x.jsonl", json.dumps({"audio": name, "text": "words"}))
    assert "First" in reading and "there is no audio file" in reading


def read_bad(path: Path, content: str) -> str:
    with pytest.raises(DataError) as error:
        read(path, content, "seq2seq")
    return str(error.value)
