"""Adafactor: Adam's second moment, factored into rows times columns; no first moment. It needs almost no memory.

Shazeer & Stern 2018, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", arXiv 1804.04235, algorithms 4
and 5, with b = 1 - t^-0.8 (sec. 7.2) and d = 1 (sec. 6):

    matrix [N, M]    r = b r + (1 - b) mean of g^2 + e1 over columns  [N]      v = r c / mean(r)
                     c = b c + (1 - b) mean of g^2 + e1 over rows     [M]
    vector           v = b v + (1 - b) (g^2 + e1)
    u = g / sqrt(v)            w -= rate * (u / max(1, RMS(u) / d) + decay * w)

The paper's step is relative, rate * max(e2, RMS(w)). Here that is an option, so that train.learning_rate means the same as
elsewhere. (torch's own Adafactor always uses the relative step.)
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.optimizer import Optimizer
from weitiao.train.optimizers._per_parameter import PerParameterOptimizer


class Adafactor(Optimizer):
    """Adam without its memory: one row and one column of numbers per matrix."""

    decay_rate: float = Field(default=0.8, gt=0, le=1)
    """Exponent of the second moment's decay: at step t its weight on the past is 1 - t^-decay_rate."""
    clip_threshold: float = Field(default=1.0, gt=0)
    """Maximum root mean square d of a tensor's update, before the learning rate is applied."""
    relative_step: bool = False
    """Multiply the rate by each tensor's root mean square (at least 1e-3); then rates of 1e-3 to 1e-2 are usual."""
    epsilon: float = Field(default=1e-30, gt=0)
    """Added to the squared gradient, for numerical stability."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return PerParameterOptimizer(groups, self.model_dump(), _update)


MIN_RMS = 1e-3  # e2: the root mean square of a tensor of zeros, for the relative step


def _update(w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state["step"] = torch.zeros(())
    state["step"] += 1
    weight_of_new = float(state["step"]) ** -group["decay_rate"]  # 1 - b; it is 1 at the first step
    if w.ndim >= 2:
        r = state.setdefault("exp_avg_sq_row", torch.zeros_like(w[..., :1]))  # [N, 1]
        c = state.setdefault("exp_avg_sq_col", torch.zeros_like(w[..., :1, :]))  # [1, M]
        r.lerp_(_mean_square(g, -1).add_(group["epsilon"]), weight_of_new)
        c.lerp_(_mean_square(g, -2).add_(group["epsilon"]), weight_of_new)
        u = (g * (r / r.mean(-2, keepdim=True)).rsqrt_()).mul_(c.rsqrt())
    else:
        v = state.setdefault("exp_avg_sq", torch.zeros_like(w))
        v.lerp_(g.square().add_(group["epsilon"]), weight_of_new)
        u = g * v.rsqrt()
    rate = group["lr"] * (max(MIN_RMS, _rms(w)) if group["relative_step"] else 1.0)
    w.mul_(1 - rate * group["weight_decay"])
    w.add_(u, alpha=-rate / max(1.0, _rms(u) / group["clip_threshold"]))


def _mean_square(g: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(g, dim=dim, keepdim=True).square_().div_(g.shape[dim])


def _rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5
