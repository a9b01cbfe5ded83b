"""AdamW whose two moments are kept in eight bits: two bytes a weight instead of eight.

Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861, sec. 2:

    a moment, flat    [ 256 numbers | 256 numbers | ... ]      each block is divided by its largest |number|
    is kept as        [ 256 codes   | 256 codes   | ... ]      uint8: the nearest of 256 values
                      [ largest     | largest     | ... ]      fp32, one a block

    the values lie tight at nought (dynamic tree quantisation, fig. 2):    +- 10^-6 ... 10^-1 x (1, 2, 4 ... 64 steps), 1

Read, moved and written piece by piece, so no moment ever stands in fp32 as a whole. Tensors below 4096 numbers stay in
fp32. One thing differs from the paper: a second moment is never rounded to nought, or its weight would leap (Li et al.
2023, arXiv 2309.01507, sec. 4.1: the zero-point problem).
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.optimizer import Optimizer
from weitiao.train.optimizers._per_parameter import EachWeight

KEYS = ("exp_avg", "exp_avg_sq")
BLOCK = 256
SMALL = 4096  # numbers; smaller tensors are not worth it (the paper's own bound)
PIECE = {"cpu": 2**19, "cuda": 2**24}  # numbers at once: what a CPU's cache holds, what keeps a GPU busy


class AdamW8bit(Optimizer):
    """AdamW with its memory in eight bits a number."""

    betas: tuple[float, float] = (0.9, 0.999)
    """How slowly the averages of the gradient and of its square move."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Added to the root of the squares' average."""

    def make(self, groups: list[dict]) -> torch.optim.Optimizer:
        """Parameter groups {params, lr, weight_decay} -> the optimizer."""
        return EachWeight(groups, {"betas": self.betas, "eps": self.epsilon}, _move)


def _move(w: Tensor, g: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    plain = w.numel() < SMALL or not w.is_contiguous()
    if not state:
        state["step"] = torch.zeros(())
        for key in KEYS:
            blocks = -(-w.numel() // BLOCK)
            state[key] = torch.zeros_like(w) if plain else w.new_zeros(blocks * BLOCK, dtype=torch.uint8)
            state.update({} if plain else {f"{key}_scale": w.new_zeros(blocks)})
    state["step"] += 1
    step = float(state["step"])
    if plain:
        _adamw(w, g, state["exp_avg"], state["exp_avg_sq"], step, group)
        return
    weights, gradient = w.view(-1), g.reshape(-1)
    for numbers, blocks in _pieces(w.numel(), PIECE.get(w.device.type, PIECE["cuda"])):
        m, v = (_read(state[key][numbers], state[f"{key}_scale"][blocks], key) for key in KEYS)
        there = weights[numbers]  # the last block may be longer than what is left of the weight
        _adamw(there, gradient[numbers], m[: len(there)], v[: len(there)], step, group)
        for key, moment in zip(KEYS, (m, v)):
            state[key][numbers], state[f"{key}_scale"][blocks] = _write(moment, key)


def _adamw(w: Tensor, g: Tensor, m: Tensor, v: Tensor, step: float, group: dict[str, Any]) -> None:
    """Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2, in place."""
    rate, (b1, b2) = group["lr"], group["betas"]
    m.mul_(b1).add_(g, alpha=1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    w.mul_(1 - rate * group["weight_decay"])
    w.addcdiv_(m, (v / (1 - b2**step)).sqrt_().add_(group["eps"]), value=-rate / (1 - b1**step))


def _pieces(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    """The numbers of each piece, and its blocks."""
    for start in range(0, -(-count // BLOCK) * BLOCK, size):
        yield slice(start, start + size), slice(start // BLOCK, (start + size) // BLOCK)


def _read(codes: Tensor, scale: Tensor, key: str) -> Tensor:
    """Codes [n] and scales [n / 256] -> fp32 [n]."""
    values, _ = _tables(key, codes.device)
    return values.index_select(0, codes.int()).view(-1, BLOCK).mul_(scale[:, None]).view(-1)


def _write(moment: Tensor, key: str) -> tuple[Tensor, Tensor]:
    """fp32 [n] -> codes and scales."""
    _, nearest = _tables(key, moment.device)
    blocks = moment.view(-1, BLOCK)
    scale = blocks.abs().amax(1)
    within = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # -1 .. 1
    return nearest.index_select(0, within.half().view(torch.int16).int().add_(2**15).view(-1)), scale


@cache
def _tables(key: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """The 256 values; and for every half-precision number, in the order of its bits read as int16, its nearest code: a
    look-up is thirty times faster than a search on a CPU."""
    values = dynamic_values(signed=key == "exp_avg")
    encoder_decoder = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    nearest = torch.bucketize(encoder_decoder, (values[1:] + values[:-1]) / 2)
    if key == "exp_avg_sq":
        nearest.clamp_(min=1)  # value 0 is nought
    return values.to(device), nearest.to(torch.uint8).to(device)


def dynamic_values(signed: bool) -> Tensor:
    """The 256 values between -1 and 1 (or 0 and 1), rising: every decade has twice the steps of the one below."""
    values = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1)
        means = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        values += [means, -means] if signed else [means]
    return torch.cat(values).sort().values
