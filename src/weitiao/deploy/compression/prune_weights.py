"""What pruning techniques share: the smallest scores of each output's weights become 0, in any pattern or 2 of every 4."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from weitiao.core.compressor import Compression, LinearLayer, Subject
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message

Pattern = Literal["unstructured", "2:4"]
GROUP, KEPT = 4, 2  # of 2:4


def keep_mask(scores: Tensor, sparsity: float, pattern: Pattern) -> Tensor:
    """[D_out, D_in], True where a weight stays: the highest scores of each row, or of every four of its weights.

    Of equal scores those with lower numbers go first, so the result does not depend on a sorting algorithm.
    """
    if pattern == "2:4":
        groups = scores.view(len(scores), -1, GROUP)
        rank = torch.zeros(groups.shape, dtype=torch.int8)  # how many of the four come before
        for i in range(GROUP):
            for j in range(GROUP):
                before = groups[..., j] <= groups[..., i] if j < i else groups[..., j] < groups[..., i]
                rank[..., i] += before
        return (rank >= GROUP - KEPT).view(scores.shape)
    n = int(scores.shape[1] * sparsity)
    if n == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(n, dim=1, keepdim=True).values
    lower, equal = scores < limit, scores == limit
    dropped_equal = equal & (equal.cumsum(1) <= n - lower.sum(1, keepdim=True))
    return ~(lower | dropped_equal)


def pruned(
    subject: Subject, score: Callable[[LinearLayer, Tensor], Tensor], sparsity: float, pattern: Pattern
) -> Compression:
    """Every linear layer with the weights of the lowest scores set to 0.

    Args:
        score: (layer, its weight [D_out, D_in] in fp32) -> a score for each weight, [D_out, D_in].

    Raises:
        ModelError: 2:4 does not fit a layer's inputs.
    """
    for layer in subject.linears.values():
        if pattern == "2:4" and layer.shape[1] % GROUP:
            raise ModelError(
                "{name} has {columns:,} inputs, no multiple of 4, which the pattern 2:4 needs. Take pattern=unstructured",
                name=layer.name,
                columns=layer.shape[1],
            )

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        layer = subject.linears.get(name)
        if layer is None:
            return {name: tensor}
        weight = tensor.T if layer.transposed else tensor
        mask = keep_mask(score(layer, weight.float()), sparsity, pattern)
        mask = mask.T if layer.transposed else mask
        return {name: torch.where(mask, tensor, torch.zeros_like(tensor)).contiguous()}

    return Compression(change, notes=[NOT_FASTER])


NOT_FASTER = Message(
    "zeros in any pattern make nothing faster and no file smaller: a CPU multiplies them as it multiplies other weights. "
    "Only GPUs with 2:4 kernels use that pattern; method drop_layers makes a model faster everywhere"
)
