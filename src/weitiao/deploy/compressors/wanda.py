"""Wanda: the weights that contribute least to each output on real rows become 0.

Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695, sec. 3, eq. 1:

    score_ij = |W_ij| ||x_j||_2          x_j: input j of the layer, over all tokens of the calibration rows

Scores are compared within the row of one output. All norms are measured in one pass through the whole model, as torchao's
WandaSparsifier does; the paper's own code prunes layer by layer and measures each behind those already pruned.
"""

from typing import ClassVar

from pydantic import Field

from weitiao.core.compressor import Compression, Subject, WeightCompressor
from weitiao.deploy.compression.activations import input_norms
from weitiao.deploy.compression.prune_weights import Pattern, pruned


class Wanda(WeightCompressor):
    """Set to 0 the weights of each output that matter least on the Run's own rows."""

    result: ClassVar[str] = "pruned"
    reads_rows: ClassVar[bool] = True

    sparsity: float = Field(default=0.5, gt=0, lt=1)
    """Fraction of the weights of linear layers that become 0; 2:4 is always a half."""
    pattern: Pattern = "unstructured"
    """Where zeros may be: anywhere, or two of every four neighbours (2:4, for GPUs with sparse kernels)."""
    rows: int = Field(default=128, ge=1)
    """How many rows of the Run it is calibrated on."""

    def plan(self, subject: Subject) -> Compression:
        """Measure the inputs of every layer, then score."""
        norms = input_norms(subject)
        return pruned(subject, lambda layer, weight: weight.abs() * norms[layer.name], self.sparsity, self.pattern)
