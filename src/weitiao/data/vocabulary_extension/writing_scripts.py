"""Which scripts a text is written in, for the choice of what new tokens may hold."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from functools import cache

from weitiao.core.vocabulary_section import SCRIPTS
from weitiao.data.inspection.scripts import RANGES

MARKS = (("han", 0x3000, 0x3041), ("han", 0xFE30, 0xFE50), ("han", 0xFF01, 0xFFF0), ("han", 0x20000, 0x33480))
"""Punctuation and full-width signs that Chinese, Japanese and Korean are written with, and English is not."""
MIN_SHARE = 0.05  # of the letters: a script that a text is written in, not one that it mentions
SAMPLE = 2_000_000  # characters that are looked at


@cache
def _edges() -> tuple[list[int], list[str]]:
    """Where a script begins, in order of code points; and which."""
    bounds = sorted({x for _, a, b in (*MARKS, *RANGES) for x in (a, b)})
    names = [next((name for name, a, b in (*reversed(RANGES), *MARKS) if a <= x < b), "none") for x in bounds]
    return bounds, names


def script_of(point: int) -> str:
    """The script of a code point; "none": digits, spaces, signs, emoji.

    >>> [script_of(ord(x)) for x in "猫aб。1—"]
    ['han', 'latin', 'cyrillic', 'han', 'none', 'none']
    """
    bounds, names = _edges()
    i = bisect_right(bounds, point) - 1
    return names[i] if i >= 0 else "none"


def count_scripts(texts: Iterable[str]) -> Counter[str]:
    """Letters by script, most frequent first, of the first two million characters."""
    characters: Counter[str] = Counter()
    length = 0
    for text in texts:
        characters.update(text)
        length += len(text)
        if length >= SAMPLE:
            break
    scripts: Counter[str] = Counter()
    for character, n in characters.items():
        if (name := script_of(ord(character))) in SCRIPTS:
            scripts[name] += n
    return scripts


def scripts_to_extend(texts: Iterable[str]) -> tuple[str, ...]:
    """The scripts that texts are written in, but Latin; the most frequent first."""
    counts = count_scripts(texts)
    total = counts.total()
    return tuple(name for name, n in counts.most_common() if name != "latin" and n >= MIN_SHARE * total)


def main_script(text: str) -> str:
    """The script that most of a text's letters are of; "none": it has no letters."""
    counts = count_scripts([text])
    return counts.most_common(1)[0][0] if counts else "none"
