"""Ten thousand broken files: no crash, each row is read or set aside, at the right line, and no byte is passed over."""

import re
import unicodedata
from pathlib import Path

import pytest

from support.broken_files import broken_file
from weitiao.core.errors import DataError
from weitiao.core.example import BadRow
from weitiao.core.registry import find_module
from weitiao.data.raw_rows import bytes_between, raw_bytes
from weitiao.data.records import Reader, Record

KINDS = {"jsonl": "jsonl", "csv": "csv", "tsv": "csv", "conll": "conll", "txt": "text"}
LINE_END = {"csv": rb"\r\n|\r|\n", "tsv": rb"\r\n|\r|\n"}
SHORT, LONG = range(120), range(120, 2000)  # of each kind: 600 files, and 10,000


def check(kind: str, seed: int, path: Path) -> str:
    """Read one file; how it ended: rows, document (JSON over several lines), or refused."""
    raw = broken_file(kind, seed)
    path.write_bytes(raw)
    try:
        items = list(find_module(Reader, KINDS[kind]).read(path, "auto"))
    except DataError as error:
        assert str(path) in str(error)
        return "refused"
    assert all(isinstance(x, (Record, BadRow)) for x in items)
    assert all(str(x.reason) and x.code for x in items if isinstance(x, BadRow))
    if any(x.where.offset is None for x in items):
        assert kind == "jsonl" or raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw
        return "document"
    between = list(bytes_between(path, [x.where for x in items]))
    lengths = [len(raw) - x.where.offset if x.where.length is None else x.where.length for x in items]
    assert sum(lengths) + sum(len(x) for _, x in between) == len(raw)
    for i, (_, gap) in enumerate(between):
        assert is_no_row(kind, gap, first=i == 0), (seed, gap[:200])
    for item in items:
        start = 1 + len(re.findall(LINE_END.get(kind, rb"\n"), raw[: item.where.offset]))
        last = start + raw_bytes(item.where).count(b"\n")
        assert start <= item.where.line <= last if kind == "conll" else item.where.line == start, seed
    if kind == "jsonl" and (len(items) != 1 or items[0].where.length is not None):
        lines = [x for x in raw.removeprefix(b"\xef\xbb\xbf").split(b"\n") if not is_blank(x)]
        assert len(lines) == len(items), seed
    return "rows"


def is_blank(raw: bytes) -> bool:
    """Bytes that hold nothing to read: spaces, line ends, marks."""
    text = raw.decode("utf-8", "replace").replace("\ufeff", "")
    return all(x.isspace() or unicodedata.category(x) == "Zs" for x in text)


def is_no_row(kind: str, gap: bytes, first: bool) -> bool:
    lines = [x for x in re.split(rb"\r\n|\r|\n", gap) if not is_blank(x)]
    if kind == "conll":
        return all(x.startswith((b"#", b"-DOCSTART-")) for x in lines)
    if kind in ("csv", "tsv"):  # the header, which may have quoted line breaks, below sep=
        return first or not lines
    return not lines


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files(kind: str, tmp_path: Path) -> None:
    ends = [check(kind, seed, tmp_path / f"x{seed}.{kind}") for seed in SHORT]
    assert ends.count("rows") > len(ends) / 2


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_broken_files(kind: str, tmp_path: Path) -> None:
    for seed in LONG:
        path = tmp_path / f"x{seed}.{kind}"
        check(kind, seed, path)
        path.unlink()
