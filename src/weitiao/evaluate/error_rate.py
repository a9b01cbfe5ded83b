"""What word and character error rates share: what counts of a text, and how many changes make one of the other.

Levenshtein 1966; the least number of insertions, deletions and substitutions, by rapidfuzz.

What is compared is the plain form of both: NFKC, lower case, no punctuation or symbols (a hyphen parts words; an apostrophe
inside a word stays: don't), single spaces. Numbers stay as they are written: 20 is not twenty.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.score import Score, proportion, ratio_of_sums
from weitiao.evaluate.squad import HAN


def plain_form(text: str) -> str:
    """What counts.

    >>> plain_form("Don't stop: twenty-one, ＯＫ?")
    "don't stop twenty one ok"
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    kept = (x if x == "'" or unicodedata.category(x)[0] not in "PS" else " " for x in text)
    return " ".join("".join(kept).split())


def words_of(text: str) -> list[str]:
    """Words, and each Han character by itself.

    >>> words_of("Hello, 世界")
    ['hello', '世', '界']
    """
    return re.sub(f"({HAN})", r" \1 ", plain_form(text)).split()


def error_rate(name: str, pairs: Sequence[tuple[Any, Any]], units: Callable[[str], Sequence[str]]) -> Score:
    """Changes over units of the references, summed over all rows; it may exceed 1. Where no row has any, the interval is
    Wilson's for rows with a mistake.

    Args:
        pairs: (written, reference) of each row.
        units: a text's words or characters.

    Raises:
        RecipeError: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise RecipeError(f"evaluate.metrics: {name} needs rapidfuzz: pip install 'weitiao[audio]'.") from None
    each = [(units(str(said)), units(str(right))) for said, right in pairs]
    changes = [float(Levenshtein.distance(said, right)) for said, right in each]
    if each and not any(changes):  # no spread to draw from, and yet n rows are no proof of nought
        return replace(proportion(name, 0, len(each)), higher_is_better=False)
    return ratio_of_sums(name, changes, [float(len(right)) for _, right in each])
