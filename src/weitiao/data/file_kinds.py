"""Files that are no data file, told by their first bytes: archives, workbooks, pointers, web pages."""

from pathlib import Path

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.messages import Message
from weitiao.data.json_values import parse_line
from weitiao.data.unpacking import office_folders, open_file

UNPACK, EXPORT = Message("unpack it first"), Message("save the table as CSV (UTF-8)")
RENAME = Message("give it the ending {ending}, or set format: {format} for this source")
KINDS = (  # first bytes, what such a file is, what to do
    (b"7z\xbc\xaf\x27\x1c", "7z", UNPACK),
    (b"Rar!\x1a\x07", "rar", UNPACK),
    (b"\xd0\xcf\x11\xe0", "Excel or Word (.xls, .doc), or with a password", Message("save it as .xlsx or .docx")),
    (b"\x80\x04\x95", "pickle", Message("save the rows as JSON lines")),
    (b"SQLite format 3", "SQLite", EXPORT),
    (b"version https://git-lfs", "Git LFS pointer", Message("fetch the file itself with: git lfs pull")),
    (b"<!doctype html", "web page", Message("download the file itself")),
    (b"<html", "web page", Message("download the file itself")),
)
READERS = (  # first bytes, what such a file is, its reader, its ending
    (b"%PDF", "PDF", "pdf", ".pdf"),
    (b"PAR1", "Parquet", "parquet", ".parquet"),
    (b"ARROW1", "Arrow", "arrow", ".arrow"),
)
TAR = b"ustar"  # at byte 257
HEAD_BYTES = 1 << 16
ZIP = b"PK\x03\x04"
OFFICE = (("word/", "Word (.docx)", "docx", ".docx"), ("xl/", "Excel (.xlsx)", "xlsx", ".xlsx"))  # folder in the zip file


def check_json(file: Path, reader: str) -> None:
    """Refuse rows of JSON under the name of a text or a table: they would be trained on as they are written.

    Raises:
        DataError: with the format to set.
    """
    if reader not in ("text", "csv", "conll"):
        return
    with open_file(file) as opened:
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
    with open_file(file) as opened:
        head = opened.read(4096)
    start = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    kind, remedy, its_reader = _kind(file, start)
    if kind and reader != its_reader and not (reader == "text" and kind == "web page"):
        raise DataError("data: {file} is a file of another kind ({kind}): {remedy}.", file=file, kind=kind, remedy=remedy)


def _kind(file: Path, start: bytes) -> tuple[str, Message, str]:
    """(what a file is, what to do, the reader of such files); "" where its first bytes say nothing."""
    if start[257 : 257 + len(TAR)] == TAR:
        return "tar", UNPACK, ""
    if start.startswith(ZIP):
        folders = office_folders(file)
        for folder, kind, reader, ending in OFFICE:
            if folder in folders:
                return kind, Message(RENAME.template, ending=ending, format=reader), reader
        return "zip", UNPACK, ""
    for magic, kind, reader, ending in READERS:
        if start.startswith(magic):
            return kind, Message(RENAME.template, ending=ending, format=reader), reader
    return next(((kind, remedy, "") for magic, kind, remedy in KINDS if start.startswith(magic)), ("", UNPACK, ""))
