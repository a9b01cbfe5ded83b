"""orjson reads plain lines: every object and every error is the one that Python's own decoder gives."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from weitiao.core.errors import InvalidValue
from weitiao.data import json_values
from weitiao.data.json_values import parse_line, parse_plain
from weitiao.data.readers import jsonl

ODD = (  # what the two decoders may read differently, or what only one of them reads
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "-0.0", "0.1", "1e5", "1E-7", "18446744073709551615",
    "18446744073709551616", "-9223372036854775809", "9223372036854775808", "0.30000000000000004", "5e-324",
    "1.7976931348623157e308", "2.2250738585072011e-308", "123456789012345678.5", "9007199254740993.0",
    "1" * 5000, "01", "+1", ".5", "1.", "nul",
    '"\\ud800"', '"\\ud83d\\ude00"', '"\\u0022:"', '"\\":"', '"a\tb"', '"\\x"', "'a'", '"\\u0000"', '{"a": 1, "a": 2}',
    '{"a" :1, "a" :2, "b": "x\\":"}', '{"a": 1, "\\u0061": 2, "b": "\\u0022\\u0022"}', '{"\\ud800": 1}',
    "[" * 300 + "]" * 300,
    '{"a":' * 200 + "1" + "}" * 200, "[" * 5000, "[1,]", '{"a": 1,}', "\ufeff{}", "\u3000", "\x0b",
    "\u2028", "{}{}", "// x",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(['":', '"', "\\", "a: b"])
)
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4), max_leaves=12
)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """JSON as programs write it, with odd parts put in anywhere, and a few bytes changed."""
    value = draw(st.dictionaries(st.text(max_size=5), VALUES, max_size=4) | VALUES)
    spaced = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : "), (",\t", "\t:")]))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()), separators=spaced)
    for _ in range(draw(st.integers(0, 2))):
        position = draw(st.integers(0, len(text)))
        end = draw(st.integers(position, min(len(text), position + 3)))
        text = text[:position] + draw(st.sampled_from(ODD) | st.sampled_from('":,{}[]\\ 0')) + text[end:]
    raw = text.encode("utf-8", "surrogatepass").replace(b"\n", b" ")
    return raw + draw(st.sampled_from([b"", b"\r", b",", b" ", b"\xff", b"\xed\xa0\x80"]))


def outcome(raw: bytes) -> str:
    """What `parse_line` makes of a line; repr tells 1 from 1.0 and True, and 0.0 from -0.0."""
    try:
        return repr(parse_line(raw.rstrip(b"\r\n").decode("utf-8")))
    except InvalidValue as error:
        return repr(error.message)


@given(lines())
@settings(max_examples=1500, deadline=None)
def test_what_orjson_reads_is_what_python_reads(raw: bytes) -> None:
    value = parse_plain(raw + b"\n")
    assert value is None or repr(value) == outcome(raw)


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("form", ["{}", '{{"a": {}}}', '{{"text": "x", "a": [{}, 1]}}', '{{"a": 1, {}}}'])
def test_odd_values(odd: str, form: str) -> None:
    raw = form.format(odd).encode("utf-8", "surrogatepass")
    value = parse_plain(raw)
    assert value is None or repr(value) == outcome(raw)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**18), 10**18))
@example(-0.0)
@example(2.2250738585072014e-308)
@settings(max_examples=2000, deadline=None)
def test_numbers(number: float) -> None:
    for text in (repr(number), f"{number:.17g}", f"{number:.5e}"):
        raw = b'{"a": ' + text.encode() + b"}"
        value = parse_plain(raw)
        assert value is None or repr(value) == outcome(raw)


@given(
    st.lists(lines(), min_size=1, max_size=6), st.sampled_from([b"", b"\xef\xbb\xbf"]), st.sampled_from(["auto", "utf-8"])
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_read_the_same(tmp_path: Path, rows: list[bytes], mark: bytes, encoding: str) -> None:
    """Records, bad rows, lines, bytes: as if there were no orjson."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(mark + b"\n".join([b'{"text": "x", "label": 1}', *rows, b'{"text": "y"}']))
    records = list(jsonl.read(path, encoding))
    with patch.object(jsonl, "parse_plain", return_value=None):
        assert [described(x) for x in jsonl.read(path, encoding)] == [described(x) for x in records]


def described(row: Any) -> tuple[Any, ...]:
    where = row.where
    return repr(row), where.file, where.line, where.offset, where.length


@pytest.mark.parametrize(
    "line",
    [
        '{"messages": [{"role": "user", "content": "Hi: \\"a\\": 1"}], "n": 1, "x": 0.5}',
        '{"text": "\\u4f60\\u597d : 你好", "id": 12345678901234567}',
        '{ "a" : [true, false, null], "b" : {} }',
    ],
)
def test_plain_lines_are_read_by_orjson(line: str) -> None:
    """The odd are few: none of these needs the slower decoder."""
    with patch.object(json_values, "parse", side_effect=AssertionError):
        assert parse_plain(line.encode()) == json.loads(line)


@pytest.mark.parametrize(
    "line",
    ['{"a": 1, "a": 1}', '{"a": {"b": "x", "b": "y"}, "c": "\\u0022"}', '{"n": 18446744073709551616}', '{"n": NaN}'],
)
def test_odd_lines_are_asked(line: str) -> None:
    assert parse_plain(line.encode()) is None
