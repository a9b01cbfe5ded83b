"""The units of a text that each get a tag: words and signs, and of writing without spaces each character.

In 1998, 江泽民 met Ada.    ->    In|1998|,|江|泽|民|met|Ada|.
"""

import unicodedata
from collections.abc import Sequence

UNSPACED = (  # blocks whose writing has no spaces between words
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


def is_unspaced(character: str) -> bool:
    """A Chinese character, or Japanese kana."""
    return any(first <= ord(character) <= last for first, last in UNSPACED)


def units_of(text: str) -> list[tuple[int, int]]:
    """Where each unit begins and ends, in characters. Accents that stand alone belong to what is before them.

    >>> [("On 江泽民's 9th"[a:b]) for a, b in units_of("On 江泽民's 9th")]
    ['On', '江', '泽', '民', "'", 's', '9th']
    """
    found: list[tuple[int, int]] = []
    kind = ""  # of the unit that ends here: a word may go on, a sign or a Chinese character not
    for i, character in enumerate(text):
        category = unicodedata.category(character)
        joins = bool(found) and found[-1][1] == i and (category[0] == "M" or category == "Cf")
        now = "unspaced" if is_unspaced(character) else "word" if category[0] in "LN" or character == "_" else "sign"
        if character.isspace() or (category[0] == "C" and category != "Co" and not joins):
            kind = ""
        elif joins or (now == kind == "word"):
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
            kind = now
    return found


def laid_out(tokens: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Tokens as one text, and where each stands: with spaces between them, but none where Chinese stands on either side
    or every token is a single character of a Chinese text."""
    single = all(len(x) == 1 for x in tokens) and any(is_unspaced(x) for x in tokens)
    text, places = "", []
    for token in tokens:
        apart = text and not single and not is_unspaced(text[-1]) and not is_unspaced(token[0])
        text += " " if apart else ""
        places.append((len(text), len(text) + len(token)))
        text += token
    return text, places
