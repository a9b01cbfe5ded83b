"""PDF: one record per page; the line is the number of the page. Lines are kept as they are set.

A page without text that holds an image is a scan: a bad row, named with its page. pdfium reads the text; pypdf gives
characters of the Kangxi block instead of Chinese ones.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.hardware import needs
from weitiao.core.messages import Message
from weitiao.data.records import Record
from weitiao.data.unpacking import read_file

ENDINGS = (".pdf",)
HYPHENS = ("\ufffe\r\n", "\x02\r\n", "\ufffe\n", "\x02\n")  # pdfium's marks where a word is divided at the end of a line


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """One record per page, with the column `text`.

    Raises:
        DataError: the file is no PDF, damaged, or encrypted.
        RecipeError: pypdfium2 is not installed.
    """
    needs("pypdfium2", "docs", "A PDF")
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(read_file(path))
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise DataError("data: {path} is encrypted: save it without its password.", path=path) from None
        raise DataError("{path} is not a PDF that can be read: {error}", path=path, error=str(error)) from None
    try:
        for number in range(len(document)):
            where = SourceLocation(str(path), number + 1)
            try:
                yield from _page(document, number, where)
            except pypdfium2.PdfiumError as error:
                yield BadRow(where, Message("the page cannot be read: {error}", error=str(error)), code="pdf")
    finally:
        document.close()


def _page(document: Any, number: int, where: SourceLocation) -> Iterator[Record | BadRow]:
    page = document[number]
    try:
        layer = page.get_textpage()
        text = layer.get_text_range()
        layer.close()
        if text.strip():
            yield Record(where, {"text": _plain(text)})
        elif next(iter(page.get_objects(max_depth=3)), None) is not None:
            yield BadRow(where, Message("the page has no text: it is a scan. Make it text first, with an OCR program"),
                         code="scan")  # fmt: skip
    finally:
        page.close()


def _plain(text: str) -> str:
    for mark in HYPHENS:
        text = text.replace(mark, "")
    return text.replace("\r\n", "\n").replace("\x00", "")
