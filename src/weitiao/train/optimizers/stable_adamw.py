"""StableAdamW: AdamW whose rate falls where a tensor's gradient exceeds its second moment, as before a loss spike.

Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models", arXiv 2304.13013,
algorithm 2:

    m, v as in Adam; the bias correction of the first steps is in the betas instead of in m and v
    RMS = sqrt(mean(g^2 / max(v, eps^2)))          one number per tensor: about 1 where v estimates g^2 well
    w -= rate / max(1, RMS) * (m / (sqrt(v) + eps) + decay * w)
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.optimizer import Optimizer
from weitiao.train.optimizers._per_parameter import PerParameterOptimizer


class StableAdamW(Optimizer):
    """AdamW that lowers the rate of a tensor while its gradient is far larger than expected."""

    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the averages of the gradient and of its square."""
    epsilon: float = Field(default=1e-6, gt=0)
    """Added to the square root of the second moment, for numerical stability."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return PerParameterOptimizer(groups, {"betas": self.betas, "eps": self.epsilon}, _update)


def _update(w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    if not state:
        state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(w), exp_avg_sq=torch.zeros_like(w))
    state["step"] += 1
    m, v, t = state["exp_avg"], state["exp_avg_sq"], float(state["step"])
    b1, b2 = (b * (1 - b ** (t - 1)) / (1 - b**t) for b in group["betas"])  # 0 at the first step
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    rms = (g.square() / v.clamp(min=group["eps"] ** 2)).mean().sqrt()
    rate = group["lr"] / max(1.0, float(rms))
    w.mul_(1 - rate * group["weight_decay"])
    w.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-rate)
