"""Readers: every format's rows, where they stood, and what is wrong with those that are wrong."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import BadRow
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module
from weitiao.data.read import files_of, read_sources
from weitiao.data.records import Reader, Record
from weitiao.objective.objectives.causal_lm import CausalLM
from weitiao.objective.objectives.sft import SFT

ROWS = [
    {"prompt": "what", "completion": "time"},
    {"prompt": "你好", "completion": "世界 😀"},
    {"prompt": "a", "completion": "b"},
]


def read(path: Path, encoding: str = "auto", reader: str = "") -> list[Any]:
    name = reader or {".jsonl": "jsonl", ".json": "jsonl", ".tsv": "csv", ".txt": "text"}.get(path.suffix, path.suffix[1:])
    return list(find_module(Reader, name).read(path, encoding))


def fields(items: list[Any]) -> list[dict]:
    return [x.fields for x in items if isinstance(x, Record)]


def lines(items: list[Any]) -> list[int]:
    return [x.where.line for x in items]


def jsonl(path: Path, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes("".join(json.dumps(x, ensure_ascii=False) + end for x in ROWS).encode(encoding))
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_jsonl(tmp_path: Path, end: str, encoding: str) -> None:
    items = read(jsonl(tmp_path / "a.jsonl", end, encoding))
    assert fields(items) == ROWS and lines(items) == [1, 2, 3]


def test_jsonl_byte_offsets(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"a": "\xe4\xbd\xa0"}\n\n{"a": 2\n[1]\n"word"\n'
        + b'{"a": "\xc4\xe3"}\r\n'
        + b'{"a": 3}'  # no last \n
    )
    whole = file.read_bytes().split(b"\n")
    items = read(file)
    assert lines(items) == [1, 3, 4, 5, 6, 7]
    with open(file, "rb") as opened:
        for item in items:
            opened.seek(item.where.offset)
            assert opened.readline().rstrip(b"\n") == whole[item.where.line - 1]
    reasons = {x.where.line: str(x.reason) for x in items if isinstance(x, BadRow)}
    assert reasons[3].startswith("not JSON: Expecting ',' delimiter at column")
    assert reasons[4] == "not an object but a list" and reasons[5] == "not an object but text"
    assert reasons[6].startswith("not utf-8 at byte 7 of the line.")
    assert fields(items) == [{"a": "你"}, {"a": 3}]


def test_jsonl_too_deep_is_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("[" * 100_000 + "\n" + json.dumps(ROWS[0]) + "\n")
    bad, good = read(file)
    assert isinstance(bad, BadRow) and good.fields == ROWS[0]


def test_json_list(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps([*ROWS, 7], indent=2))
    items = read(file)
    assert fields(items) == ROWS and str(items[3].reason) == "not an object but a number"
    file.write_text(json.dumps(ROWS)[:-1])
    (bad,) = read(file)
    assert str(bad.reason).startswith("not JSON")


def test_text_split_at_form_feeds(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeff第一 one\ntwo\n\fthree\n\f \n\ffour".encode())
    items = read(file)
    assert [x["text"] for x in fields(items)] == ["第一 one\ntwo\n", "three\n", "four"]
    assert lines(items) == [1, 3, 5]
    for item in items:
        text = item.fields["text"].encode()
        assert file.read_bytes()[item.where.offset :].removeprefix(b"\xef\xbb\xbf").startswith(text)


def test_csv_quoted_line_breaks_and_ragged_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(
        '\ufeffprompt, completion\n"two\nlines, and ""quotes""",b\nonly one\n\n'.encode()
        + '1,2,3\n你好,世界\n"x"y,z\nlast,row\n'.encode()
    )
    items = read(file)
    assert fields(items) == [
        {"prompt": 'two\nlines, and "quotes"', "completion": "b"},
        {"prompt": "你好", "completion": "世界"},
        {"prompt": "last", "completion": "row"},
    ]
    assert lines(items) == [2, 4, 6, 7, 8, 9]
    bad = {x.where.line: str(x.reason) for x in items if isinstance(x, BadRow)}
    assert bad[4] == "1 fields, but the header has 2" and bad[6] == "3 fields, but the header has 2"
    assert bad[8].startswith("not CSV: ")


def test_tsv(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("prompt\tcompletion\nfox, dog\tparis\n")
    assert fields(read(file)) == [{"prompt": "fox, dog", "completion": "paris"}]


def test_csv_unclosed_quote_reported(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('prompt,completion\na,b\n"c,d\ne,f\n')
    items = read(file)
    assert fields(items) == [{"prompt": "a", "completion": "b"}]
    assert items[-1].where.line == 3 and "unexpected end of data" in str(items[-1].reason)


def test_csv_of_chinese_excel(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("问题,回答\r\n今天,天气好\r\n".encode("gbk"))
    assert fields(read(file)) == fields(read(file, "gb18030")) == [{"问题": "今天", "回答": "天气好"}]
    with pytest.raises(DataError, match="a.csv: not ascii at byte 0 of the line"):
        read(file, "ascii")


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": [{"role": "user", "content": x["prompt"]}]} for x in ROWS]), file)
    items = read(file)
    assert fields(items)[1] == {"messages": [{"role": "user", "content": "你好"}]} and lines(items) == [1, 2, 3]
    file.write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="a.parquet is not a Parquet file"):
        read(file)


@pytest.mark.parametrize("text", ["今天天气", "今天天气x", "你好 x世界"])
def test_gbk_proven_or_asked(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode("gbk"))
    assert fields(read(file)) == [{"text": text}]
    file.write_bytes("是".encode("gbk"))  # one character is no proof
    (bad,) = read(file)
    assert isinstance(bad, BadRow) and bad.code == "encoding"
    assert "set the encoding of this source, as in encoding: gb18030" in str(bad.reason)
    assert fields(read(file, "gb18030")) == [{"text": "是"}]


@pytest.mark.parametrize("raw", [b"caf\xe9 noir.", b"\xff\xff\xff"])
def test_non_chinese_not_called_gbk(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    (bad,) = read(tmp_path / "a.txt")
    assert "gb18030" not in str(bad.reason) and str(bad.reason).startswith("not utf-8 at byte ")


def test_wrong_encoding_setting(tmp_path: Path) -> None:
    assert all(
        isinstance(x, BadRow) and "not ascii" in str(x.reason) for x in read(jsonl(tmp_path / "a.jsonl"), "ascii")[1:2]
    )


def test_unknown_encoding(tmp_path: Path) -> None:
    with pytest.raises((DataError, RecipeError), match="utf-9"):
        read_sources([Source(path=str(jsonl(tmp_path / "a.jsonl")), encoding="utf-9")], SFT(), 1.0)


# -- sources ----------------------------------------------------------------------------------------------------------


def test_one_bad_line_in_ten_thousand(tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"{i}", "completion": "x"}) for i in range(10_000)]
    rows[77] = rows[77][:-1]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    reading = read_sources([Source(path=str(tmp_path / "a.jsonl"))], SFT(), 0.01)
    assert len(reading.examples) == 9_999 and [x.where.line for x in reading.bad] == [78]
    assert next(iter(reading.mappings.values())) == "prompt -> completion"


def test_folder_glob_and_limit(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        jsonl(tmp_path / name)
    (tmp_path / "notes.odt").write_text("not read")
    assert [x.name for x in files_of(Source(path=str(tmp_path)))] == ["a.jsonl", "b.jsonl"]
    assert [x.name for x in files_of(Source(path=f"{tmp_path}/b*.jsonl"))] == ["b.jsonl"]
    reading = read_sources([Source(path=str(tmp_path), limit=2), Source(path=f"{tmp_path}/a.jsonl", limit=1)], SFT(), 0.0)
    assert [x.source for x in reading.examples] == [0, 0, 0, 0, 1]


def test_unknown_file_extension(tmp_path: Path) -> None:
    (tmp_path / "a.rows").write_text("x")
    with pytest.raises(
        DataError, match=r"no reader for the file name ending of .*known are .*.csv, .*.json, .jsonl.*Or set the format"
    ):
        read_sources([Source(path=str(tmp_path / "a.rows"))], CausalLM(), 0.0)
    jsonl(tmp_path / "a.rows")
    assert len(read_sources([Source(path=str(tmp_path / "a.rows"), format="jsonl")], SFT(), 0.0).examples) == 3
    with pytest.raises(RecipeError, match="there is no reader called 'json'. Did you mean 'jsonl'"):
        read_sources([Source(path=str(tmp_path / "a.rows"), format="json")], SFT(), 0.0)


def test_lone_surrogate_is_bad_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"text": "half \\ud83d"}\n{"text": " "}\n')
    reading = read_sources([Source(path=str(tmp_path / "a.jsonl"))], CausalLM(), 1.0)
    assert [str(x.reason) for x in reading.bad] == [
        "the text has an unpaired surrogate, which is not a character", "the text is empty",
    ]  # fmt: skip


def test_duplicate_column_refused(tmp_path: Path) -> None:
    """Or the second would silently replace the first."""
    (tmp_path / "x.csv").write_text("prompt,completion,prompt\na,b,c\n")
    with pytest.raises(DataError, match="line 1: the header has 'prompt' more than once"):
        list(find_module(Reader, "csv").read(tmp_path / "x.csv", "auto"))
