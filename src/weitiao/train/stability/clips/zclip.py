"""ZClip: clips gradient norms that are far above the recent ones, and no others.

Kumar et al. 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training", arXiv 2504.02507, sec. 3:

    z = (|g| - mean) / std                                     of an exponential moving average of norms
    z > z_threshold:   |g| <- mean + z_threshold^2 / z * std   the larger z, the stronger the clipping
    mean and std are then updated with the clipped norm, so a spike hardly changes them
"""

import math

from pydantic import Field
from torch import Tensor, nn

from weitiao.core.optimizer import Clip


class ZClip(Clip):
    """Clip by the z-score of the gradient norm."""

    z_threshold: float = Field(default=2.5, gt=0)
    """Standard deviations above the mean from which a gradient is clipped."""
    alpha: float = Field(default=0.97, gt=0, lt=1)
    """Decay rate of mean and variance."""
    warmup_steps: int = Field(default=25, ge=2)
    """Steps that initialize mean and variance; until then only max_norm applies."""
    max_norm: float | None = Field(default=1.0, gt=0)
    """Maximum gradient norm in any case; null: none."""

    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        """Scale the gradients down, in place; `memory` holds count, mean and variance."""
        limit = self._limit(float(norm), memory)
        self._update(min(float(norm), limit), memory)
        nn.utils.clip_grads_with_norm_(weights.values(), min(limit, self.max_norm or math.inf), norm)

    def _limit(self, norm: float, memory: dict[str, float]) -> float:
        if memory.get("count", 0) < self.warmup_steps:
            return math.inf
        mean, std = memory["mean"], math.sqrt(memory["variance"]) + 1e-12
        z = (norm - mean) / std
        return mean + self.z_threshold**2 / z * std if z > self.z_threshold else math.inf

    def _update(self, norm: float, memory: dict[str, float]) -> None:
        """Plain mean and variance in the warm-up (Welford), then exponential moving averages."""
        count, mean, variance = (memory.get(key, 0.0) for key in ("count", "mean", "variance"))
        if count < self.warmup_steps:
            new_mean = mean + (norm - mean) / (count + 1)
            variance = (variance * count + (norm - mean) * (norm - new_mean)) / (count + 1)
        else:
            new_mean = self.alpha * mean + (1 - self.alpha) * norm
            variance = self.alpha * variance + (1 - self.alpha) * (norm - new_mean) ** 2
        memory.update(count=count + 1, mean=new_mean, variance=variance)
