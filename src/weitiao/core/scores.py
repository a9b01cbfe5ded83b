"""What `evaluate` returns: scores by name, and what is behind them."""

from collections.abc import Mapping
from typing import Any

from weitiao.core.score import Score


class Scores(dict[str, Score]):
    """Scores by name, and what is behind those of classes."""

    classes: dict[str, dict[str, Any]]
    """By task ("" where there is one): each class, confusion matrix, mistakes, calibration (evaluate/class_report.py)."""

    forgetting: dict[str, Any] | None
    """What a run has lost, where that was asked for (evaluate/forgetting/findings.py)."""

    baselines: dict[str, Score]
    """Of a search: what rankings without a model score on the same rows, as 'popularity (recall_at_10)'."""

    def __init__(
        self,
        scores: Mapping[str, Score],
        classes: Mapping[str, dict[str, Any]],
        forgetting: dict[str, Any] | None = None,
        baselines: Mapping[str, Score] | None = None,
    ) -> None:
        super().__init__(scores)
        self.classes, self.forgetting, self.baselines = dict(classes), forgetting, dict(baselines or {})
