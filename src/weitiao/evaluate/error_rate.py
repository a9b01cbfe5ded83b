"""Word and character error rates: text normalisation and edit distance.

Levenshtein 1966: the least number of insertions, deletions and substitutions, computed by rapidfuzz.

Both texts are normalised first: NFKC, lower case, no punctuation or symbols (a hyphen separates words; an apostrophe
inside a word stays: don't), single spaces. Numbers are compared as written: 20 is not twenty.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.score import Clusters, Score, mean_of_rows, ratio_of_sums
from weitiao.evaluate.squad import HAN


def normalize_text(text: str) -> str:
    """The form that is compared.

    >>> normalize_text("Don't stop: twenty-one, ＯＫ?")
    "don't stop twenty one ok"
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    text = re.sub(r"(?<!\w)'|'(?!\w)", " ", text)
    characters = (x if x == "'" or unicodedata.category(x)[0] not in "PS" else " " for x in text)
    return " ".join("".join(characters).split())


def split_words(text: str) -> list[str]:
    """Words; each Han character is a word.

    >>> split_words("Hello, 世界")
    ['hello', '世', '界']
    """
    return re.sub(f"({HAN})", r" \1 ", normalize_text(text)).split()


def error_rate(
    name: str, pairs: Sequence[tuple[Any, Any]], units: Callable[[str], Sequence[str]], clusters: Clusters = ()
) -> Score:
    """Edits divided by reference units, both summed over all rows; may exceed 1. Where no row has an edit, the interval is
    Wilson's for the share of rows with an edit.

    Args:
        pairs: (generated, reference) of each row.
        units: splits a text into words or characters.

    Raises:
        RecipeError: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise RecipeError(
            "evaluate.metrics: {metric} needs rapidfuzz. Install it with: pip install 'weitiao[audio]'", metric=name
        ) from None
    split_pairs = [(units(str(text)), units(str(reference))) for text, reference in pairs]
    edits = [float(Levenshtein.distance(text, reference)) for text, reference in split_pairs]
    if split_pairs and not any(edits):  # a bootstrap of zeros has no spread, yet n rows do not prove a rate of zero
        return mean_of_rows(name, edits, clusters, higher_is_better=False)
    return ratio_of_sums(name, edits, [float(len(reference)) for _, reference in split_pairs], clusters=clusters)
