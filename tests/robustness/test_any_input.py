"""No traceback from any input: every reader on any bytes, every mapping on any values. With --full, 100,000 of each."""

import csv
import io
import json
import string
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitiao.core.errors import WeitiaoError
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find_module, names
from weitiao.data import column_names
from weitiao.data.columns import Mapping
from weitiao.data.mapping import find_inference_mapping
from weitiao.data.read import ROW_ERRORS, Reading, read_sources
from weitiao.data.records import Reader

OBJECTIVES = {name: find_module(Mapping, name).OBJECTIVE for name in names(Mapping)}
ENDINGS = sorted({(name, find_module(Reader, name).ENDINGS[0]) for name in names(Reader)} - {("parquet", ".parquet")})
COLUMNS = sorted(
    {x for value in vars(column_names).values() if isinstance(value, tuple) for x in value if isinstance(x, str)}
    | {x for pair in column_names.PROMPTS_COMPLETIONS for x in pair}
    | {"messages", "conversations", "negative_1"}
)
WORDS = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "nan",
        "[]",
        "{}",
        "['a', 'b']",
        '["a"]',
        "1",
        "1.0",
        "TRUE",
        "①",
        "-1",
        "<noinput>",
        "B-x",
        "O",
        "😀 a",
        "\ud83d",
    ]
)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.sampled_from([10**400, -0.0, 1e308, 3])
)  # fmt: skip
KEYS = st.sampled_from(
    ["role", "from", "content", "value", "start", "end", "label", "text", "answer_start", "tool_calls", "weight", "word"]
)
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(KEYS | WORDS, x, max_size=4), max_leaves=8
)


@contextmanager
def saved(name: str, content: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        yield path


def read(path: Path, objective: str, **settings: Any) -> Reading | None:
    """What was read; None if it is refused with a sentence that can be shown."""
    try:
        reading = read_sources([Source(path=str(path), **settings)], create("objective", objective), 1.0)
    except WeitiaoError as error:
        str(error).encode("utf-8")
        return None
    for row in reading.bad:
        f"{row.reason} {row.excerpt}".encode()
    for x in reading.columns:
        json.dumps(x.as_json(), ensure_ascii=False).encode()
    for x in reading.findings():
        json.dumps(x.as_json(), ensure_ascii=False).encode()
        str(x.message).encode()
    assert all(x.example.full_text.strip() for x in reading.examples)
    return reading


@pytest.mark.parametrize("mapping", OBJECTIVES)
@given(st.data())
def test_every_mapping_on_any_values(mapping: str, data: st.DataObject) -> None:
    columns = data.draw(st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=5, unique=True))
    rows = data.draw(st.lists(st.fixed_dictionaries({}, optional={x: VALUES for x in columns}), min_size=1, max_size=4))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with saved("rows.jsonl", text.encode()) as path:
        read(path, OBJECTIVES[mapping], limit=data.draw(st.none() | st.just(2)))


@pytest.mark.parametrize("mapping", OBJECTIVES)
@given(st.data())
def test_every_mapping_on_the_columns_it_names(mapping: str, data: st.DataObject) -> None:
    module = find_module(Mapping, mapping)
    targets = data.draw(st.sets(st.sampled_from(module.TARGETS), min_size=1))
    names_of = {target: f"c {target}" for target in targets}
    rows = data.draw(st.lists(st.fixed_dictionaries({x: VALUES for x in names_of.values()}), min_size=1, max_size=3))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    with saved("rows.jsonl", text.encode()) as path:
        read(path, OBJECTIVES[mapping], columns=names_of)
    if mapping != "chat":
        try:
            inference = find_inference_mapping(rows, module.EXAMPLE_TYPE, names_of, "rows")
        except WeitiaoError:
            return
        for row in rows:
            try:
                inference.make(row)
            except ROW_ERRORS:
                continue


@pytest.mark.parametrize(("reader", "ending"), ENDINGS)
@given(st.data())
def test_every_reader_on_any_bytes(reader: str, ending: str, data: st.DataObject) -> None:
    pieces = st.binary(max_size=20) | st.sampled_from(
        [b"{", b"}", b"[", b"]", b",", b'"', b":", b"\n", b"\t", b";", b"text", b"\xef\xbb\xbf", b"\xff\xfe", b"NaN",
         b"null", b'{"text": "a b"}', b'"data": [', b'"paragraphs": [', b"'", b"\\", b"\f", b"\r", b"# ", b"-DOCSTART-",
         b"9" * 5000]
    )  # fmt: skip
    content = b"".join(data.draw(st.lists(pieces, min_size=1, max_size=12)))
    with saved(f"rows{ending}", content) as path:
        for objective in ("causal_lm", "token_classification"):
            read(path, objective, format=reader)


@pytest.mark.parametrize(("reader", "ending"), ENDINGS)
@given(st.data())
def test_damaged_files(reader: str, ending: str, data: st.DataObject) -> None:
    """A sound file with some bytes removed, doubled or changed: no row is one that was not written."""
    content = sound_file(reader)
    first = data.draw(st.integers(0, len(content)))
    end = min(first + data.draw(st.integers(0, 12)), len(content))
    damage = data.draw(st.sampled_from([b"", b'"', b"\n", b",", content[first:end] * 2]) | st.binary(max_size=3))
    with saved(f"rows{ending}", content[:first] + damage + content[end:]) as path:
        read(path, "question_answering" if reader == "squad" else "classification", format=reader)


def sound_file(reader: str) -> bytes:
    rows = [{"text": f"the text {x}, of a row", "label": "ab"[i % 2]} for i, x in enumerate(string.ascii_letters[:6])]
    if reader == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().encode()
    if reader == "squad":
        qas = [{"id": str(i), "question": "what?", "answers": [{"text": "the", "answer_start": 0}]} for i in range(3)]
        return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "the text", "qas": qas}]}]}).encode()
    if reader == "conll":
        return b"Ada B-PER\nmet O\n\nBo B-PER\nin O\nOslo B-LOC\n"
    return "".join(json.dumps(x) + "\n" for x in rows).encode()
