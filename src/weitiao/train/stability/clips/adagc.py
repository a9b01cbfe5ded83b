"""AdaGC: each tensor's gradient is held to what that tensor's gradients used to be.

Wang et al. 2025, "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv 2502.11034,
algorithm 1:

    warm-up    g <- g * min(1, longest / |g|) over all tensors;   usual_i = least |g_i| so far
    then       g_i <- g_i * min(1, times * usual_i / |g_i|);      usual_i = beta usual_i + (1 - beta) |g_i|

One thing differs: a tensor whose gradient is exactly nought (a fresh LoRA's A) does not count, or it would be held to
nought for ever.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.optimizer import Clip


class AdaGC(Clip):
    """Clip each tensor by its own history."""

    lambda_rel: float = Field(default=1.05, gt=0)
    """How many times a tensor's usual length its gradient may have."""
    beta: float = Field(default=0.98, gt=0, lt=1)
    """How slowly the usual length moves."""
    warmup: int = Field(default=100, ge=1)
    """Steps of ordinary clipping, in which the usual lengths are found."""
    max_norm: float = Field(default=1.0, gt=0)
    """Longest gradient (over all tensors) in the warm-up."""

    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        """Shorten the gradients in place; `memory` holds the steps so far and each tensor's usual length."""
        there = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        step = memory["steps"] = memory.get("steps", 0) + 1
        warming = step <= self.warmup
        if warming:
            nn.utils.clip_grads_with_norm_(weights.values(), self.max_norm, norm)
        lengths = torch.stack([grad.norm() for grad in there.values()]).tolist()
        for (name, grad), length in zip(there.items(), lengths):
            key = f"usual {name}"
            usual = memory.get(key)
            if length == 0.0:
                continue
            if usual is None:
                memory[key] = length
            elif warming:
                memory[key] = min(usual, length)
            else:
                allowed = min(length, self.lambda_rel * usual)
                grad.mul_(allowed / length)
                memory[key] = self.beta * usual + (1 - self.beta) * allowed
