"""What is behind the scores of classes: each class's precision and recall, the confusion matrix, the most confident
mistakes, and the reliability diagram. All of it is a record (JSON): classes.json of a Run, `weitiao evaluate --json`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from weitiao.core.score import proportion
from weitiao.evaluate.class_counts import classes_of
from weitiao.evaluate.class_probabilities import reliability

MAX_CLASSES = 64  # among the references: more are not classes
MISTAKES = 3  # of each class
MISTAKE_CHARACTERS = 500  # of its text
OTHER = ""  # what the model answers that is no class, in the confusion matrix


def class_report(
    pairs: Sequence[tuple[Any, Any]],
    probabilities: Sequence[tuple[Mapping[str, float], Any]],
    texts: Sequence[str] = (),
) -> dict[str, Any]:
    """The record; {} where the rows have no classes.

    Args:
        pairs: (answer, reference) of each row; each a string, or the classes.
        probabilities: (class -> probability, reference) of each row; empty: they are not known.
        texts: of each row, to be read beside a mistake.

    Returns:
        classes: by class, {precision, recall: {value, low, high, n}, f1, references, answered}; matrix: where each row has
        one class, by reference and answer, "" for an answer that is no class; mistakes: {row, text, reference, answered,
        probability}, the most confident first, up to three of each class; reliability: see class_probabilities.py.
    """
    if not pairs or not all(isinstance(x, (str, tuple, list, set, frozenset)) for pair in pairs for x in pair):
        return {}
    if any(len(x) > len(set(x)) for pair in pairs for x in pair if isinstance(x, (list, tuple))):
        return {}  # tags, one a word: not the classes of a row
    rows = [(classes_of(answer), classes_of(reference)) for answer, reference in pairs]
    counts = Counter(c for _, reference in rows for c in reference)
    if not 2 <= len(counts) <= MAX_CLASSES or len(rows) < len(counts) * 2 or not all(isinstance(c, str) for c in counts):
        return {}
    right = Counter(c for answer, reference in rows for c in answer & reference)
    answered = Counter(c for answer, _ in rows for c in answer)
    names = sorted(counts)
    table = {}
    for c in names:
        table[c] = {
            "precision": _share(right[c], answered[c]),
            "recall": _share(right[c], counts[c]),
            "f1": 2 * right[c] / (answered[c] + counts[c]),
            "references": counts[c],
            "answered": answered[c],
        }
    report: dict[str, Any] = {"n": len(rows), "classes": table}
    if all(len(answer) == len(reference) == 1 for answer, reference in rows):
        known = set(names)
        cells = Counter((next(iter(r)), a if (a := next(iter(answer))) in known else OTHER) for answer, r in rows)
        columns = [*names, *([OTHER] if any(a == OTHER for _, a in cells) else [])]
        report["matrix"] = {"answers": columns, "rows": {r: [cells[r, a] for a in columns] for r in names}}
    report["mistakes"] = [
        {**x, "text": texts[x["row"]][:MISTAKE_CHARACTERS]} if x["row"] < len(texts) else x
        for x in _mistakes(rows, probabilities)
    ]
    if probabilities:
        report["reliability"] = reliability(probabilities)
    return report


def _share(hits: int, n: int) -> dict[str, Any] | None:
    """A proportion with Wilson's interval; None where nothing was counted."""
    if not n:
        return None
    score = proportion("", hits, n)
    return {"value": score.value, "low": score.low, "high": score.high, "n": n}


def _mistakes(
    rows: Sequence[tuple[set[str], set[str]]], probabilities: Sequence[tuple[Mapping[str, float], Any]]
) -> list[dict[str, Any]]:
    """The wrong rows of each class, the most confident first; without probabilities, the first ones."""
    mistakes = []
    for row, (answer, reference) in enumerate(rows):
        if answer == reference:
            continue
        wrong = sorted(answer - reference) or sorted(reference - answer)
        sure = [probabilities[row][0].get(c, 0.0) for c in wrong] if row < len(probabilities) else []
        confidence = max(sure) if answer - reference and sure else 1 - min(sure) if sure else None
        mistakes.append({"row": row, "reference": sorted(reference), "answered": sorted(answer), "probability": confidence})
    mistakes.sort(key=lambda x: -(x["probability"] or 0.0))
    kept: Counter[str] = Counter()
    shown = []
    for x in mistakes:
        of = ", ".join(x["reference"])
        kept[of] += 1
        if kept[of] <= MISTAKES:
            shown.append(x)
    return shown
