"""SQuAD's JSON, versions 1.1 and 2.0: documents, their paragraphs, and the questions about each; a record a question.

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id", "question", "answers", "is_impossible"}]}]}]}

Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822. CMRC 2018 and DRCD come in the same form. A question's
place is its number in the file, as a table's row; the byte is that of its id.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, SourceLocation
from weitiao.data.records import Record, decode

ENDINGS = (".json",)
LOOKED_AT = 1 << 16  # bytes
FORM = '{"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [...]}]}]}'


def looks_like(path: Path) -> bool:
    """Other files end in .json too."""
    with open(path, "rb") as file:
        head = file.read(LOOKED_AT).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"{") and b'"paragraphs"' in head and re.search(rb'"data"\s*:\s*\[', head) is not None


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """Records with id, title, question, context, answers.

    Raises:
        DataError: it is not one JSON object with `data`.
    """
    text = decode(path.read_bytes(), encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        raise DataError(f"{path}: {text.reason}")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}.") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        raise DataError(f"{path} has not SQuAD's form: {FORM}.")
    place = _Place(path, text)
    for i, document in enumerate(whole["data"]):
        for j, paragraph in enumerate(_list(document, "paragraphs")):
            for qa in _list(paragraph, "qas"):
                where = place.of(qa)
                if isinstance(paragraph, dict) and isinstance(qa, dict):
                    yield Record(where, _fields(document, paragraph, qa))
                else:
                    words = f"data[{i}].paragraphs[{j}] has not SQuAD's form: {FORM}"
                    yield BadRow(where, words, str(qa)[:200])


class _Place:
    """Counts the questions, and finds each one's id behind the one before."""

    def __init__(self, path: Path, text: str) -> None:
        self.file, self.text = str(path), text
        self.number = self.at = self.offset = 0

    def of(self, qa: Any) -> SourceLocation:
        self.number += 1
        name = json.dumps(qa.get("id"), ensure_ascii=False) if isinstance(qa, dict) and "id" in qa else ""
        found = re.compile(rf'"id"\s*:\s*{re.escape(name)}').search(self.text, self.at) if name else None
        if found is None:
            return SourceLocation(self.file, self.number)
        self.offset += len(self.text[self.at : found.start()].encode("utf-8", "surrogatepass"))
        self.at = found.start()
        return SourceLocation(self.file, self.number, self.offset)


def _fields(document: Any, paragraph: dict[str, Any], qa: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in qa.items() if key != "plausible_answers"}
    return {"title": document.get("title", ""), "context": paragraph.get("context"), **kept}


def _list(thing: Any, key: str) -> list[Any]:
    """The list under a key; where it is missing, one broken entry, which becomes a bad row."""
    found = thing.get(key) if isinstance(thing, dict) else None
    return found if isinstance(found, list) else [None]
