"""Files that are no data file, told by their first bytes: archives, workbooks, pointers, web pages."""

from pathlib import Path

from weitiao.core.errors import DataError
from weitiao.core.messages import Message

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
ZIP, WORKBOOK = b"PK\x03\x04", b"xl/"


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
