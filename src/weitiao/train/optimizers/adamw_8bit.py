"""AdamW with its two moments stored in 8 bits: two bytes per weight instead of eight.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, sec. 2:

    a moment, flat    [ 256 numbers | 256 numbers | ... ]      each block is divided by its largest |number|
    is stored as      [ 256 codes   | 256 codes   | ... ]      uint8: the nearest of 256 values
                      [ largest     | largest     | ... ]      fp32, one per block

    the values are dense near zero (dynamic tree quantization, fig. 2):    +- 10^-6 ... 10^-1 x (1, 2, 4 ... 64 steps), 1

Moments are dequantized, updated and quantized in chunks, so no moment is ever in fp32 as a whole. Tensors below 4096
numbers stay in fp32. One difference from the paper: a second moment is never rounded to zero, because the update of its
weight would explode (Li et al. 2023, arXiv 2309.01507, sec. 4.1: the zero-point problem).
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.optimizer import Optimizer
from weitiao.train.optimizers._per_parameter import PerParameterOptimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK = 256
MIN_SIZE = 4096  # numbers; smaller tensors stay in fp32 (the paper's own limit)
CHUNK = {"cpu": 2**19, "cuda": 2**24}  # numbers at a time: what fits in a CPU's cache, what keeps a GPU busy


class AdamW8bit(Optimizer):
    """AdamW with its moments in 8 bits per number."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the averages of the gradient and of its square."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the square root of the second moment, for numerical stability."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return PerParameterOptimizer(groups, {"betas": self.betas, "eps": self.epsilon}, _update)


def _update(w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    in_fp32 = w.numel() < MIN_SIZE or not w.is_contiguous()
    if not state:
        state["step"] = torch.zeros(())
        for moment in MOMENTS:
            num_blocks = -(-w.numel() // BLOCK)
            state[moment] = torch.zeros_like(w) if in_fp32 else w.new_zeros(num_blocks * BLOCK, dtype=torch.uint8)
            state.update({} if in_fp32 else {f"{moment}_scale": w.new_zeros(num_blocks)})
    state["step"] += 1
    step = float(state["step"])
    if in_fp32:
        _adamw(w, g, state["exp_avg"], state["exp_avg_sq"], step, group)
        return
    weights, gradient = w.view(-1), g.reshape(-1)
    for numbers, blocks in _chunks(w.numel(), CHUNK.get(w.device.type, CHUNK["cuda"])):
        m, v = (_dequantize(state[x][numbers], state[f"{x}_scale"][blocks], x) for x in MOMENTS)
        chunk = weights[numbers]  # the last block may be longer than what is left of the weight
        _adamw(chunk, gradient[numbers], m[: len(chunk)], v[: len(chunk)], step, group)
        for moment, values in zip(MOMENTS, (m, v)):
            state[moment][numbers], state[f"{moment}_scale"][blocks] = _quantize(values, moment)


def _adamw(w: Tensor, g: Tensor, m: Tensor, v: Tensor, step: float, group: dict[str, Any]) -> None:
    """Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2, in place."""
    rate, (b1, b2) = group["lr"], group["betas"]
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    w.mul_(1 - rate * group["weight_decay"])
    w.addcdiv_(m, (v / (1 - b2**step)).sqrt_().add_(group["eps"]), value=-rate / (1 - b1**step))


def _chunks(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """For each chunk of `size` numbers: the slice of its numbers, and the slice of its blocks."""
    for start in range(0, -(-count // BLOCK) * BLOCK, size):
        yield slice(start, start + size), slice(start // BLOCK, (start + size) // BLOCK)


def _dequantize(codes: Tensor, scale: Tensor, moment: str) -> Tensor:
    """Codes [n] and scales [n / 256] -> fp32 [n]."""
    values, _ = _tables(moment, codes.device)
    return values.index_select(0, codes.int()).view(-1, BLOCK).mul_(scale[:, None]).view(-1)


def _quantize(numbers: Tensor, moment: str) -> tuple[Tensor, Tensor]:
    """fp32 [n] -> codes [n] and scales [n / 256]."""
    _, nearest_code = _tables(moment, numbers.device)
    blocks = numbers.view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    normalized = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # -1 .. 1
    # the bits of each half-precision number, read as int16 and shifted to start at 0, are its index in the table
    return nearest_code.index_select(0, normalized.half().view(torch.int16).int().add_(2**15).view(-1)), scale


@cache
def _tables(moment: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 values; and the nearest code of every half-precision number, ordered by its bits read as int16.

    On a CPU, this look-up is thirty times faster than a search for the nearest value.
    """
    values = dynamic_values(signed=moment == "exp_avg")
    all_halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    nearest_code = torch.bucketize(all_halves, (values[1:] + values[:-1]) / 2)
    if moment == "exp_avg_sq":
        nearest_code.clamp_(min=1)  # code 0 is the value zero
    return values.to(device), nearest_code.to(torch.uint8).to(device)


def dynamic_values(signed: bool) -> Tensor:
    """The 256 values between -1 and 1 (or 0 and 1), ascending: every decade has twice as many steps as the one below."""
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        means = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values += [means, -means] if signed else [means]
    return torch.cat(values).sort().values
