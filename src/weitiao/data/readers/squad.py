"""SQuAD's JSON, versions 1.1 and 2.0: documents, their paragraphs, and the questions about each; one record per question.

    {"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [{"id", "question", "answers", "is_impossible"}]}]}]}
    or only the list of documents

Rajpurkar et al. 2016, arXiv 1606.05250; 2018, arXiv 1806.03822. CMRC 2018 and DRCD have the same format. A
question is located by its number in the file, like a table's row; the byte offset is that of its id.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import BadRow, SourceLocation
from weitiao.core.messages import Message
from weitiao.data.json_values import parse
from weitiao.data.records import Record, decode
from weitiao.data.unpacking import open_file, read_file

ENDINGS = (".json", ".jsonl")
HEAD_BYTES = 1 << 16
FORMAT = '{"data": [{"title": ..., "paragraphs": [{"context": ..., "qas": [...]}]}]}'


def looks_like(path: Path) -> bool:
    """Whether a JSON file has SQuAD's format."""
    with open_file(path) as file:
        head = file.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    in_data = head.startswith(b"{") and re.search(rb'"data"\s*:\s*\[', head) is not None
    return b'"paragraphs"' in head and (in_data or re.match(rb'\[\s*\{\s*"(title|paragraphs)"', head) is not None)


def read(path: Path, encoding: str) -> Iterator[Record | BadRow]:
    """Records with id, title, question, context, answers.

    Raises:
        DataError: the file is not JSON, or has no list of documents.
    """
    text = decode(read_file(path), encoding, SourceLocation(str(path), 1, 0))
    if isinstance(text, BadRow):
        raise DataError("{path}: {reason}", path=path, reason=text.reason)
    try:
        whole = parse(text)
    except InvalidValue as error:
        raise DataError("{path}: {reason}", path=path, reason=error.message) from None
    documents = whole.get("data") if isinstance(whole, dict) else whole
    if not isinstance(documents, list):
        raise DataError("{path} does not have SQuAD's format: {format}", path=path, format=FORMAT)
    locator = _QuestionLocator(path, text)
    for i, document in enumerate(documents):
        for j, paragraph in enumerate(_list(document, "paragraphs")):
            for qa in _list(paragraph, "qas"):
                where = locator.locate(qa)
                if isinstance(paragraph, dict) and isinstance(qa, dict):
                    yield Record(where, _fields(document, paragraph, qa))
                else:
                    reason = Message(
                        "data[{document}].paragraphs[{paragraph}] does not have SQuAD's format: {format}",
                        document=i,
                        paragraph=j,
                        format=FORMAT,
                    )
                    yield BadRow(where, reason, str(qa)[:200], "squad")


class _QuestionLocator:
    """Counts the questions, and finds the byte offset of each id, searching on from the previous one."""

    def __init__(self, path: Path, text: str) -> None:
        self.file, self.text = str(path), text
        self.number = self.index = self.offset = 0

    def locate(self, qa: Any) -> SourceLocation:
        self.number += 1
        name = json.dumps(qa.get("id"), ensure_ascii=False) if isinstance(qa, dict) and "id" in qa else ""
        match = re.compile(rf'"id"\s*:\s*{re.escape(name)}').search(self.text, self.index) if name else None
        if match is None:
            return SourceLocation(self.file, self.number)
        self.offset += len(self.text[self.index : match.start()].encode("utf-8", "surrogatepass"))
        self.index = match.start()
        return SourceLocation(self.file, self.number, self.offset)


def _fields(document: Any, paragraph: dict[str, Any], qa: dict[str, Any]) -> dict[str, Any]:
    question = {key: value for key, value in qa.items() if key != "plausible_answers"}
    return {"title": document.get("title", ""), "context": paragraph.get("context"), **question}


def _list(container: Any, key: str) -> list[Any]:
    """The list under a key; where it is missing, [None], which becomes a bad row."""
    items = container.get(key) if isinstance(container, dict) else None
    return items if isinstance(items, list) else [None]
