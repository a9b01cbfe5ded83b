"""Expected calibration error: how far the confidence of an answer is from the share that is right.

Guo et al. 2017, arXiv 1706.04599, eq. 3, with 15 equally wide bins of the probability of the chosen class:

    ECE = sum over bins of (rows in the bin / n) |share that is right - mean confidence|

Where several classes may apply to a row, each class of each row counts. Few rows make it larger by chance alone: compare
models on the same rows.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score, bootstrapped_by_weights, not_measured
from weitiao.evaluate.class_probabilities import NUM_BINS, bins_of, confidences


class ECE(Metric):
    """Expected calibration error; 0: confidence is the share that is right."""

    reads: ClassVar[Reads] = "probabilities"

    def score(self, pairs: list[tuple[Mapping[str, float], Any]], clusters: Clusters = ()) -> Score:
        """(class -> probability, reference) of each row; a bootstrap over rows."""
        if not pairs:
            return not_measured(self.name, higher_is_better=False)
        confidence, right = confidences(pairs)
        in_bin = bins_of(confidence)[:, None] == np.arange(NUM_BINS)
        per_row = len(confidence) // len(pairs)
        gaps = (in_bin * (right - confidence)[:, None]).reshape(len(pairs), per_row, NUM_BINS).sum(1)  # [n, bins]

        def statistic(times: np.ndarray) -> np.ndarray:
            return np.abs(times @ gaps).sum(1) / (times.sum(1) * per_row)

        return bootstrapped_by_weights(self.name, len(pairs), statistic, higher_is_better=False, clusters=clusters)
