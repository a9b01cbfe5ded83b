"""Dynamic loss scale: fp16 gradients below 6e-8 are zero, so the loss is multiplied before the backward pass.

Micikevicius et al. 2018, "Mixed Precision Training", arXiv 1710.03740, sec. 3.2.

    too large: a gradient overflows -> halve the scale and repeat the same window: no row is lost
    2,000 windows without overflow  -> double the scale

If the loss is non-finite even at scale 1, the scale is not the cause: it stays as it was, and the guard handles the step.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from weitiao.train.step import StepResult

GROWTH_INTERVAL = 2000  # windows without overflow before the scale is doubled
MAX_SCALE = 2.0**24


@dataclass
class LossScale:
    """Its fields are saved in the State. Not `dynamic`: nothing is multiplied (bf16 and fp32 need no scale)."""

    scale: float = 1.0
    dynamic: bool = False
    stable_windows: int = 0
    """Windows since the last change."""

    @classmethod
    def starting_at(cls, scale: float) -> "LossScale":
        """A dynamic scale that starts at the power of two at or below this value."""
        return cls(2.0 ** math.floor(math.log2(scale)), dynamic=True)

    def compute_gradients(
        self, compute: Callable[[float], StepResult], weights: Iterable[nn.Parameter]
    ) -> tuple[StepResult, Tensor]:
        """Compute a window's gradients at a scale that fits, and leave them unscaled.

        Args:
            compute: scale -> the window's result, its gradients multiplied by the scale.

        Returns:
            The window's result, and the L2 norm of its gradients.
        """
        weights, initial_scale = list(weights), self.scale
        while True:
            result = compute(self.scale)
            gradients = [x.grad for x in weights if x.grad is not None]
            if self.dynamic:
                for gradient in gradients:
                    gradient.mul_(1.0 / self.scale)  # a power of two: exact
            norm = nn.utils.get_total_norm(gradients)
            if not self.dynamic:
                return result, norm
            if bool(norm.isfinite()):
                self._grow()
                return replace(result, notes={**result.notes, **self._notes(gradients)}), norm
            if self.scale <= 1.0 or not math.isfinite(result.loss):
                self.scale = initial_scale
                return result, norm
            self.scale, self.stable_windows = self.scale / 2, 0
            for weight in weights:
                weight.grad = None

    def _grow(self) -> None:
        self.stable_windows += 1
        if self.stable_windows >= GROWTH_INTERVAL:
            self.scale, self.stable_windows = min(2 * self.scale, MAX_SCALE), 0

    def _notes(self, gradients: list[Tensor]) -> dict[str, float]:
        """For the events: the scale, and the fraction of gradient elements that are zero all the same.

        Only tensors with a nonzero gradient count: others (a new LoRA's A) are zero for another reason.
        """
        zeros, total = 0, 0
        for gradient in gradients:
            nonzeros = int(gradient.count_nonzero())
            if nonzeros:
                zeros, total = zeros + gradient.numel() - nonzeros, total + gradient.numel()
        return {"loss_scale": self.scale, "underflow": zeros / max(total, 1)}
