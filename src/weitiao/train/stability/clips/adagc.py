"""AdaGC: clips the gradient of each tensor relative to its own recent gradient norms.

Wang et al. 2025, "AdaGC: Improving Training Stability for Large Language Model Pretraining", arXiv 2502.11034,
algorithm 1:

    warm-up    g <- g * min(1, max_norm / |g|) over all tensors;   average_i = smallest |g_i| so far
    then       g_i <- g_i * min(1, lambda_rel * average_i / |g_i|);   average_i = beta average_i + (1 - beta) |g_i|

One difference: a tensor whose gradient is exactly zero (a new LoRA's A) does not count, or it would be clipped to zero
forever.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.optimizer import Clip


class AdaGC(Clip):
    """Clip each tensor relative to its own gradient history."""

    lambda_rel: float = Field(default=1.05, gt=0)
    """Maximum gradient norm of a tensor, relative to its average norm."""
    beta: float = Field(default=0.98, gt=0, lt=1)
    """Decay rate of the average norms."""
    warmup_steps: int = Field(default=100, ge=1)
    """Steps of clipping by the global norm, in which the average norms are initialized."""
    max_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm (L2 over all tensors) in the warm-up."""

    def clip(self, weights: dict[str, nn.Parameter], norm: Tensor, memory: dict[str, float]) -> None:
        """Scale the gradients down, in place; `memory` holds the number of steps and each tensor's average norm."""
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        step = memory["steps"] = memory.get("steps", 0) + 1
        is_warmup = step <= self.warmup_steps
        if is_warmup:
            nn.utils.clip_grads_with_norm_(weights.values(), self.max_norm, norm)
        norms = torch.stack([grad.norm() for grad in gradients.values()]).tolist()  # one transfer from the device for all
        for (name, grad), own_norm in zip(gradients.items(), norms):
            key = f"average {name}"
            average = memory.get(key)
            if own_norm == 0.0:
                continue
            if average is None:
                memory[key] = own_norm
            elif is_warmup:
                memory[key] = min(average, own_norm)
            else:
                clipped = min(own_norm, self.lambda_rel * average)
                grad.mul_(clipped / own_norm)
                memory[key] = self.beta * average + (1 - self.beta) * clipped
