"""Split a text into the units that each get a tag: words and punctuation; in scripts without spaces, each character.

In 1998, 江泽民 met Ada.    ->    In|1998|,|江|泽|民|met|Ada|.
"""

import unicodedata
from collections.abc import Sequence

UNSPACED = (  # Unicode blocks of scripts without spaces between words
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


def is_unspaced(character: str) -> bool:
    """A Chinese character, or Japanese kana."""
    return any(first <= ord(character) <= last for first, last in UNSPACED)


def split_units(text: str) -> list[tuple[int, int]]:
    """(start, end) of each unit, in characters. A combining accent belongs to the unit before it.

    >>> [("On 江泽民's 9th"[a:b]) for a, b in split_units("On 江泽民's 9th")]
    ['On', '江', '泽', '民', "'", 's', '9th']
    """
    units: list[tuple[int, int]] = []
    kind = ""  # of the last unit: a word may continue, punctuation or a Chinese character may not
    for i, character in enumerate(text):
        category = unicodedata.category(character)
        joins = bool(units) and units[-1][1] == i and (category[0] == "M" or category == "Cf")
        current = "unspaced" if is_unspaced(character) else "word" if category[0] in "LN" or character == "_" else "sign"
        if character.isspace() or (category[0] == "C" and category != "Co" and not joins):
            kind = ""
        elif joins or (current == kind == "word"):
            units[-1] = (units[-1][0], i + 1)
        else:
            units.append((i, i + 1))
            kind = current
    return units


def join_tokens(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """(tokens as one text, start and end of each). A space separates two tokens, except next to a Chinese character or
    where every token is a single character of a Chinese text."""
    single = all(len(x) == 1 for x in tokens) and any(is_unspaced(x) for x in tokens)
    text, offsets = "", []
    for token in tokens:
        separate = text and not single and not is_unspaced(text[-1]) and not is_unspaced(token[0])
        text += " " if separate else ""
        offsets.append((len(text), len(text) + len(token)))
        text += token
    return text, offsets
