"""`overlong: split` for documents: where the next row begins.

    # Setup ⏎⏎ Install the package. Then run it. ⏎⏎ ## Options ⏎⏎ ...
                                                  |  a heading, rather than
                                              |      a paragraph, a line, a sentence, a clause, a word, a token

A row ends at the best of these places in its second half, and there at the last. Tokens stay those of the whole document,
so that all pieces together are the document, token for token; none begins inside a character, nor between an accent or a
part of an emoji and what it belongs to (a grapheme, Unicode Standard Annex 29).
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Any

from weitiao.core.messages import Message
from weitiao.core.processor import Processor

HEADING, PARAGRAPH, LINE, SENTENCE, CLAUSE, WORD, GRAPHEME, INSIDE = range(8)
CLOSING = r"[”’」』】》)）\]\"']*"
PATTERNS = {  # the boundary is where the match ends
    HEADING: re.compile(
        r"(?:\A|\n)(?=#{1,6}[ \t]|第[一二三四五六七八九十百千零〇\d]{1,6}[章节回部篇卷]"
        r"|(?:Chapter|CHAPTER|Part|PART)\s+[\dIVXLC])"
    ),
    PARAGRAPH: re.compile(r"\n[ \t\u3000]*\n\s*"),
    LINE: re.compile(r"\n"),
    SENTENCE: re.compile(rf"[。！？!?…]+{CLOSING}|\.{CLOSING}(?=\s)"),
    CLAUSE: re.compile(r"[，、；：]|[,;:](?=\s)|——"),
    WORD: re.compile(r"\S(?=\s)"),
}
NOTES = {
    HEADING: Message("pieces of documents that begin at a heading"),
    PARAGRAPH: Message("pieces of documents that begin at a paragraph"),
    LINE: Message("pieces of documents that begin at a line"),
    SENTENCE: Message("pieces of documents that begin at a sentence"),
}
ELSEWHERE = Message("pieces of documents that begin inside a sentence")


def piece_starts(text: str, ids: Sequence[int], processor: Processor, max_length: int) -> list[tuple[int, int]]:
    """Where the pieces of an encoded document begin.

    Args:
        ids: of the text, with the special tokens that the tokenizer adds around it.
        max_length: tokens of a piece.

    Returns:
        (index of the piece's first token, kind of place: HEADING ... INSIDE), of the second piece and all after it.
    """
    kinds = boundary_kinds(text, ids, processor)
    starts: list[tuple[int, int]] = []
    start = 0
    while len(ids) - start > max_length:
        last = start + max_length
        middle = start + max(1, max_length // 2)
        half = range(last, middle - 1, -1)
        best = min(half, key=lambda t: kinds[t])  # of equals the first, which is the last in the document
        if kinds[best] == INSIDE:
            best = next((t for t in range(middle - 1, start, -1) if kinds[t] != INSIDE), last)
        starts.append((best, kinds[best]))
        start = best
    return starts


def boundary_kinds(text: str, ids: Sequence[int], processor: Processor) -> list[int]:
    """[tokens]: the kind of place at which each token begins; INSIDE everywhere where the tokenizer tells no offsets."""
    kinds = [INSIDE] * len(ids)
    try:
        own, offsets = processor.encode_with_offsets(text)
    except NotImplementedError:  # a tokenizer in Python
        return kinds
    shift = next((k for k in range(len(ids) - len(own) + 1) if list(ids[k : k + len(own)]) == own), None)
    if shift is None or not own:
        return kinds
    strong = _strong_boundaries(text)
    graphemes = _grapheme_starts(text)
    end = 0
    for t, (a, b) in enumerate(offsets):
        if t and end <= a:  # else it is a further part of a character
            at = [x for x in (end, a) if _is_in(graphemes, x)]  # a space between may be in neither token's offsets
            kinds[shift + t] = min((strong.get(x, GRAPHEME) for x in at), default=INSIDE)
        end = max(end, b)
    return kinds


def _strong_boundaries(text: str) -> dict[int, int]:
    """The places of a text that are more than between two characters, with their kind."""
    kinds: dict[int, int] = {}
    for kind, pattern in reversed(PATTERNS.items()):
        kinds.update((match.end(), kind) for match in pattern.finditer(text))
    return kinds


def _grapheme_starts(text: str) -> list[int]:
    return [match.start() for match in _graphemes().finditer(text)]


@cache
def _graphemes() -> Any:
    import regex  # transformers needs it

    return regex.compile(r"\X")


def _is_in(numbers: list[int], x: int) -> bool:
    i = bisect_left(numbers, x)
    return i < len(numbers) and numbers[i] == x
