"""Clipping by the global norm: a gradient above the maximum norm is scaled down to it; its direction stays the same.

Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv 1211.5063, algorithm 1:

    g <- g * min(1, max_norm / |g|)          |g|: L2, over all tensors together
"""

from pydantic import Field
from torch import Tensor, nn

from weitiao.core.optimizer import Clip


class MaxNorm(Clip):
    """Clip the norm of all gradients together to a fixed maximum. A plain number in the recipe means this."""

    max_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm (L2 over all tensors)."""

    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        nn.utils.clip_grads_with_norm_(weights.values(), self.max_norm, norm)
