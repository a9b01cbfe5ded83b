"""Magnitude pruning: the smallest weights of each output become 0.

    score = |W|        Han et al. 2015, "Learning both Weights and Connections", arXiv 1506.02626, sec. 3

Weights are compared within the row of one output, as in Wanda, and not over a layer: rows of different scale then keep the
same number. It needs no data, and works for encoders and decoders.
"""

from typing import ClassVar

from pydantic import Field

from weitiao.core.compressor import Compression, Subject, WeightCompressor
from weitiao.deploy.compression.prune_weights import Pattern, pruned


class Magnitude(WeightCompressor):
    """Set the smallest weights of each output to 0."""

    result: ClassVar[str] = "pruned"

    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """Fraction of the weights of linear layers that become 0; 2:4 is always a half."""
    pattern: Pattern = "unstructured"
    """Where zeros may be: anywhere, or two of every four neighbours (2:4, for GPUs with sparse kernels)."""

    def plan(self, subject: Subject) -> Compression:
        """Score by size."""
        return pruned(subject, lambda layer, weight: weight.abs(), self.sparsity, self.pattern)
