"""ZClip: clip what lies far above the gradient lengths seen lately, and nothing else.

Kumar et al. 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv 2504.02507, sec. 3:

    z = (|g| - mean) / std                          of an exponential average of lengths
    z > limit:   |g| <- mean + limit^2 / z * std     the further out, the shorter
    mean, std then move by the clipped length: a spike hardly widens them
"""

import math

from pydantic import Field
from torch import Tensor, nn

from weitiao.core.optimizer import Clip


class ZClip(Clip):
    """Clip by how unusual the gradient's length is."""

    z_threshold: float = Field(default=2.5, gt=0)
    """Standard deviations above the mean from which a gradient is shortened."""
    alpha: float = Field(default=0.97, gt=0, lt=1)
    """How slowly mean and variance move."""
    warmup: int = Field(default=25, ge=2)
    """Steps that the first mean and variance are made of; until then only `longest` holds."""
    max_norm: float | None = Field(default=1.0, gt=0)
    """Longest gradient in any case; null: none."""

    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        """Shorten the gradients in place; `memory` holds count, mean and variance."""
        length = float(norm)
        allowed = self._allowed(length, memory)
        self._remember(min(length, allowed), memory)
        allowed = min(allowed, self.max_norm or math.inf)
        nn.utils.clip_grads_with_norm_(weights.values(), allowed, norm)

    def _allowed(self, length: float, memory: dict[str, float]) -> float:
        if memory.get("count", 0) < self.warmup:
            return math.inf
        mean, std = memory["mean"], math.sqrt(memory["variance"]) + 1e-12
        z = (length - mean) / std
        return mean + self.z_threshold**2 / z * std if z > self.z_threshold else math.inf

    def _remember(self, length: float, memory: dict[str, float]) -> None:
        """At first the plain mean and variance (Welford), then the exponential ones."""
        count, mean, variance = (memory.get(key, 0.0) for key in ("count", "mean", "variance"))
        if count < self.warmup:
            moved = mean + (length - mean) / (count + 1)
            variance = (variance * count + (length - mean) * (length - moved)) / (count + 1)
        else:
            moved = self.alpha * mean + (1 - self.alpha) * length
            variance = self.alpha * variance + (1 - self.alpha) * (length - moved) ** 2
        memory.update(count=count + 1, mean=moved, variance=variance)
