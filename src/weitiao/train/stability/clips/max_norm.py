"""The usual clip: a gradient that is longer than a limit is shortened to it, its direction kept.

Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", arXiv 1211.5063, algorithm 1:

    g <- g * min(1, longest / |g|)          |g|: over all tensors together
"""

from pydantic import Field
from torch import Tensor, nn

from weitiao.core.optimizer import Clip


class MaxNorm(Clip):
    """All gradients together, shortened to a fixed length. A number alone means this."""

    max_norm: float = Field(default=1.0, gt=0)
    """Longest gradient (L2 over all tensors)."""

    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        """Shorten the gradients in place.

        Args:
            norm: their length, over all tensors.
            memory: what the clip remembers from step to step; saved in the State.
        """
        nn.utils.clip_grads_with_norm_(weights.values(), self.max_norm, norm)
