"""What is asked of a sample only: languages, and what the cleaners would change."""

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from weitiao.core.cleaner import Cleaner, TextCleaner
from weitiao.core.registry import create
from weitiao.data.columns import is_blank
from weitiao.data.inspection.lengths import shares
from weitiao.data.inspection.occurrences import Occurrences
from weitiao.data.languages import language_of

MAX_LANGUAGES, MAX_CLEANED = 5000, 2000  # rows
MAX_CHARACTERS = 4000  # of a row
CLEANERS = ("invisible", "mojibake", "unicode", "html", "boilerplate", "repeated_text")
NEEDS = {"html": "selectolax"}  # packages of the extra `data`


def languages(rows: Sequence[tuple[int, str]], total: int) -> dict[str, Any] | None:
    """{n, table: see lengths.shares}, "" for texts whose language cannot be told; None without the package py3langid.

    Args:
        rows: index and text of each row of a sample.
        total: rows of which they are a sample.
    """
    if find_spec("py3langid") is None:
        return None
    chosen = rows[:: -(-len(rows) // MAX_LANGUAGES)] if rows else []
    counts = Counter(language_of(text[:MAX_CHARACTERS]) for _, text in chosen)
    return {"n": len(chosen), "table": shares(counts.most_common(), len(chosen), total)}


def cleanable(rows: Sequence[tuple[int, str]], total: int) -> dict[str, Any]:
    """{n, table: see lengths.shares, by cleaner; examples: {cleaner: Occurrences}} of rows that a cleaner would change."""
    chosen = rows[:: -(-len(rows) // MAX_CLEANED)] if rows else []
    occurrences = {}
    for name in CLEANERS:
        if name in NEEDS and find_spec(NEEDS[name]) is None:
            continue
        cleaner = create(Cleaner, name)
        if isinstance(cleaner, TextCleaner):
            changed = (i for i, text in chosen if not is_blank(text) and cleaner.clean(text) != text)
            occurrences[name] = Occurrences.of(changed)
    counts = [(name, x.rows) for name, x in occurrences.items() if x.rows]
    return {
        "n": len(chosen),
        "table": shares(sorted(counts, key=lambda x: -x[1]), len(chosen), total),
        "examples": {name: x for name, x in occurrences.items() if x.rows},
    }
