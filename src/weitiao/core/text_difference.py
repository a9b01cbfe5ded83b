"""Where two texts differ, as pieces: what stays around it, what goes, what comes."""

from collections.abc import Sequence
from difflib import SequenceMatcher

Piece = tuple[str, str]  # (same, removed or added; the text)
CONTEXT = 24  # characters that are shown around a difference
LONGEST = 160  # characters of a piece
MOST_COMPARED = 4_000  # characters in which single differences are looked for


def difference(before: str, after: str, most: int = 6) -> list[Piece]:
    """The first differences of two texts, with a few characters around them.

    Args:
        most: differences.

    >>> difference("a cat, uh, sat", "a cat, sat")
    [('same', 'a cat, '), ('removed', 'uh, '), ('same', 'sat')]
    """
    start = _common(before, after)
    end = _common(before[start:][::-1], after[start:][::-1])
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    pieces: list[Piece] = [("same", _last(before[:start]))]
    if max(len(old), len(new)) > MOST_COMPARED:
        pieces += [("removed", _short(old)), ("added", _short(new))]
    else:
        pieces += _differences(old, new, most)
    pieces.append(("same", _first(before[len(before) - end :])))
    return [x for x in pieces if x[1]]


def _differences(old: str, new: str, most: int) -> Sequence[Piece]:
    pieces: list[Piece] = []
    visible = 0
    for kind, i, j, k, m in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            pieces.append(("same", _middle(old[i:j])))
            continue
        if visible == most:
            return [*pieces, ("same", " ...")]
        visible += 1
        pieces += [("removed", _short(old[i:j])), ("added", _short(new[k:m]))]
    return pieces


def _common(one: str, other: str) -> int:
    """The number of characters that both begin with."""
    n = min(len(one), len(other))
    if one[:n] == other[:n]:
        return n
    low, high = 0, n
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle)
    return low


def _last(text: str) -> str:
    return text if len(text) <= CONTEXT else f"...{text[-CONTEXT:]}"


def _first(text: str) -> str:
    return text if len(text) <= CONTEXT else f"{text[:CONTEXT]}..."


def _middle(text: str) -> str:
    return text if len(text) <= 2 * CONTEXT else f"{text[:CONTEXT]}...{text[-CONTEXT:]}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}...{text[-LONGEST // 2 :]}"
