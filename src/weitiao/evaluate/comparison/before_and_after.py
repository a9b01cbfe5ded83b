"""A Run against its own base, and against always the most frequent class: row by row on the same rows."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from weitiao.core.metric import Metric
from weitiao.core.registry import create, names
from weitiao.evaluate.comparison.difference import Difference, difference, judged_together
from weitiao.evaluate.comparison.results import Results

BEFORE, AFTER = "before", "after"


def before_and_after(scores: Mapping[str, Any], row_results: Mapping[str, Any]) -> dict[str, Difference]:
    """By metric, the difference with its paired interval and Holm's adjustment over all metrics.

    Left out is what cannot be paired: the model's rows differ, or rows belong together and the record does not say how.

    Args:
        scores: scores.json.
        row_results: row_results.json.
    """
    sides = [_results(x, scores, row_results) for x in (BEFORE, AFTER)]
    differences = []
    for name, score in scores.get(AFTER, {}).items():
        kind = name.rpartition(".")[2]
        if kind not in names(Metric) or name not in scores.get(BEFORE, {}):
            continue
        metric = create(Metric, kind)
        one, two = (x.pairs(name, metric.reads) or [] for x in sides)
        if one and len(one) == len(two) and not score.get("clusters"):
            differences.append(difference(metric, name, AFTER, (one, two)))
    return {x.metric: x for x in judged_together(differences)}


def against_majority(row_results: Mapping[str, Any], classes: Mapping[str, Any]) -> tuple[str, Difference] | None:
    """(the most frequent class of the held-out rows, accuracy after training against always answering it).

    Args:
        row_results: row_results.json.
        classes: classes.json; None is returned where its rows do not have one class each, or there are several tasks.
    """
    report = classes.get(AFTER, {}).get("", {})
    choices = row_results.get(AFTER, {}).get("choices")
    if "matrix" not in report or not choices or not all(isinstance(x, str) for pair in choices for x in pair):
        return None
    (answer, _), *_ = Counter(reference for _, reference in choices).most_common(1)
    constant = [(answer, reference) for _, reference in choices]
    (differences,) = judged_together([difference(create(Metric, "accuracy"), "accuracy", AFTER, (constant, choices))])
    return answer, differences


def _results(when: str, scores: Mapping[str, Any], row_results: Mapping[str, Any]) -> Results:
    return Results(when, "", {}, row_results.get(when, {}), tuple(scores.get(when, {})))
