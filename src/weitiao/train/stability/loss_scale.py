"""Dynamic loss scale: fp16 gradients below 6e-8 are nought, so the loss is multiplied before the backward pass.

Micikevicius et al. 2018, "Mixed Precision Training", arXiv 1710.03740, sec. 3.2.

    too large: a gradient overflows -> half the scale, and the same window once more: no row is lost
    2,000 windows without overflow  -> twice the scale

A window that is not finite even at scale 1 is no matter of scale: the guard hears of it, and the scale is as before.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn

from weitiao.train.step import StepResult

CALM = 2000  # windows without overflow before the scale is doubled
LARGEST = 2.0**24


@dataclass
class LossScale:
    """Its memory is in the State. Not `dynamic`: nothing is multiplied (bf16 and fp32 need no scale)."""

    scale: float = 1.0
    dynamic: bool = False
    calm: int = 0
    """Windows since the last change."""

    @classmethod
    def starting_at(cls, scale: float) -> "LossScale":
        """A dynamic one, its scale the power of two at or below this."""
        return cls(2.0 ** math.floor(math.log2(scale)), dynamic=True)

    def take(self, take: Callable[[float], StepResult], weights: Iterable[nn.Parameter]) -> tuple[StepResult, Tensor]:
        """Take a window's gradients at the scale that fits; they are left unscaled, with their length."""
        weights, before = list(weights), self.scale
        while True:
            taken = take(self.scale)
            gradients = [x.grad for x in weights if x.grad is not None]
            if self.dynamic:
                for gradient in gradients:
                    gradient.mul_(1.0 / self.scale)  # a power of two: exact
            norm = nn.utils.get_total_norm(gradients)
            if not self.dynamic:
                return taken, norm
            if bool(norm.isfinite()):
                self._grow()
                return replace(taken, notes={**taken.notes, **self._notes(gradients)}), norm
            if self.scale <= 1.0 or not math.isfinite(taken.loss):
                self.scale = before
                return taken, norm
            self.scale, self.calm = self.scale / 2, 0
            for weight in weights:
                weight.grad = None

    def _grow(self) -> None:
        self.calm += 1
        if self.calm >= CALM:
            self.scale, self.calm = min(2 * self.scale, LARGEST), 0

    def _notes(self, gradients: list[Tensor]) -> dict[str, float]:
        """For the journal: the scale, and the share of gradient elements that are nought all the same (of tensors that
        have a gradient at all)."""
        noughts, every = 0, 0
        for gradient in gradients:
            there = int(gradient.count_nonzero())
            if there:
                noughts, every = noughts + gradient.numel() - there, every + gradient.numel()
        return {"loss_scale": self.scale, "underflow": noughts / max(every, 1)}
