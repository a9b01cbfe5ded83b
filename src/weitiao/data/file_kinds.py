"""Files that are no data file, told by their first bytes: archives, workbooks, pointers, web pages."""

from pathlib import Path

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.messages import Message
from weitiao.data.json_values import parse_line

UNPACK, EXPORT = Message("unpack it first"), Message("save the table as CSV (UTF-8)")
SAVE_TEXT, PARQUET = Message("save its text as .txt"), Message("give it the ending .parquet")
KINDS = (  # first bytes, what such a file is, what to do
    (b"\x1f\x8b", "gzip", UNPACK),
    (b"BZh", "bzip2", UNPACK),
    (b"\xfd7zXZ\x00", "xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "7z", UNPACK),
    (b"\xd0\xcf\x11\xe0", "Excel or Word (.xls, .doc)", EXPORT),
    (b"%PDF", "PDF", SAVE_TEXT),
    (b"PAR1", "Parquet", PARQUET),
    (b"ARROW1", "Arrow", Message("save the table as Parquet")),
    (b"\x80\x04\x95", "pickle", Message("save the rows as JSON lines")),
    (b"SQLite format 3", "SQLite", EXPORT),
    (b"version https://git-lfs", "Git LFS pointer", Message("fetch the file itself with: git lfs pull")),
    (b"<!doctype html", "web page", Message("download the file itself")),
    (b"<html", "web page", Message("download the file itself")),
)
HEAD_BYTES = 1 << 16
ZIP, WORKBOOK = b"PK\x03\x04", b"xl/"


def check_json(file: Path, reader: str) -> None:
    """Refuse rows of JSON under the name of a text or a table: they would be trained on as they are written.

    Raises:
        DataError: with the format to set.
    """
    if reader not in ("text", "csv", "conll"):
        return
    with open(file, "rb") as opened:
        head = opened.read(HEAD_BYTES).decode("utf-8-sig", "replace").strip()
    lines = head.split("\n")
    is_list = head.startswith("[") and head[1:].lstrip().startswith('{"')
    if is_list or (head.startswith('{"') and all(_is_object(x) for x in lines[:2] if x.strip())):
        raise DataError(
            "data: {file} holds JSON, and its ending says {reader}: set format: jsonl for this source (or format: "
            "{reader}, to read it as it is).",
            file=file,
            reader=reader,
        )


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_line(line), dict)
    except InvalidValue:
        return False


def check_kind(file: Path, reader: str) -> None:
    """Refuse a file that only has the name of a data file.

    Raises:
        DataError: with what the file is, and what to do.
    """
    with open(file, "rb") as opened:
        head = opened.read(4096)
    start = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    kind = next(((name, remedy) for magic, name, remedy in KINDS if start.startswith(magic)), None)
    if head.startswith(ZIP):
        kind = ("Excel (.xlsx)", EXPORT) if WORKBOOK in head or b"[Content_Types]" in head else ("zip", UNPACK)
    is_read = reader == "parquet" or (reader == "text" and kind is not None and kind[0] == "web page")
    if kind is not None and not is_read:
        name, remedy = kind
        raise DataError("data: {file} is a file of another kind ({kind}): {remedy}.", file=file, kind=name, remedy=remedy)
