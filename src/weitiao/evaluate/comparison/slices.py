"""Parts of the rows to look at on their own: by length, by label, by file, by script."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from weitiao.core.eval_set import closed_set
from weitiao.evaluate.comparison.results import ComparedRow

MIN_SLICE = 10  # rows; a smaller one is not shown
SCRIPTS = {
    "CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean", "LATIN": "Latin",
    "CYRILLIC": "Cyrillic", "ARABIC": "Arabic", "DEVANAGARI": "Devanagari", "THAI": "Thai", "GREEK": "Greek",
    "HEBREW": "Hebrew",
}  # fmt: skip
MIN_KANA = 0.1  # of the letters: a text with so many is Japanese, however many Han characters it has


def slices(rows: Sequence[ComparedRow]) -> dict[str, dict[str, list[int]]]:
    """Kind of slice -> its name -> row numbers; only kinds that divide the rows, and slices of at least MIN_SLICE rows."""
    references = [x.reference for x in rows]
    labels = references if closed_set(references) else [""] * len(rows)
    by_kind = {
        "length": length_buckets([len(x.input) for x in rows]),
        "label": labels,
        "source": [x.source for x in rows],
        "script": [script_of(x.input) for x in rows],
    }
    found: dict[str, dict[str, list[int]]] = {}
    for kind, names in by_kind.items():
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            groups.setdefault(name, []).append(i)
        if len(groups) > 1:
            found[kind] = {name: groups[name] for name in sorted(groups) if name and len(groups[name]) >= MIN_SLICE}
    return {kind: groups for kind, groups in found.items() if groups}


def length_buckets(lengths: Sequence[int]) -> list[str]:
    """Thirds of the rows by their length in characters, named by their bounds: equal lengths are in the same bucket.

    >>> length_buckets([3, 8, 20, 90, 100, 400])
    ['0 - 19', '0 - 19', '20 - 99', '20 - 99', '100 -', '100 -']
    """
    ordered = sorted(lengths)
    low, high = ordered[len(ordered) // 3], ordered[2 * len(ordered) // 3]
    if low == high or low == ordered[0]:
        return [""] * len(lengths)
    names = f"0 - {low - 1}", f"{low} - {high - 1}", f"{high} -"
    return [names[(x >= low) + (x >= high)] for x in lengths]


def script_of(text: str) -> str:
    """The script that most letters of a text have.

    >>> [script_of(x) for x in ("Hello, 世界", "微调 LoRA 是什么", "東京へ行く", "Привет", "123")]
    ['Latin', 'Han', 'Japanese', 'Cyrillic', 'other']
    """
    counts = Counter(SCRIPTS.get(unicodedata.name(x, "").split(" ")[0], "other") for x in text[:2000] if x.isalpha())
    total = sum(counts.values())
    if total and counts["Japanese"] >= MIN_KANA * total:
        return "Japanese"
    return counts.most_common(1)[0][0] if counts else "other"
