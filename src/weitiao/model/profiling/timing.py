"""How fast this machine is at what training consists of: matrix products, copies, attention. Medians, with n and range.

All operands are made here, from a generator of their own: measuring draws no random number that a run would draw.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

KINDS = ("forward", "to input", "to weight")  # of products that a layer needs
SHORTEST = 2e-3  # seconds of one sample: shorter work is repeated until it takes that long
MOST = 200  # times that work is repeated for one sample
LEAST = 3  # samples, where there is time for them
MOST_ROUNDS = 25


@dataclass(frozen=True)
class Workload:
    """Something that can be done again and again, and how much of it there is."""

    run: Callable[[], Any]
    amount: float
    """FLOPs, or bytes."""
    weight: float = 1.0
    """How often it occurs beside others."""


@dataclass(frozen=True)
class Rate:
    """An amount a second, in units of 10^9: the median of n samples, the lowest and the highest."""

    median: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float]:
        return {"median": round(self.median, 2), "low": round(self.low, 2), "high": round(self.high, 2), "n": self.n}

    def __str__(self) -> str:
        return f"{figures(self.median)} [{figures(self.low)}, {figures(self.high)}]"


def figures(value: float) -> str:
    """Three figures, or all before the point.

    >>> figures(1234.5), figures(61.23), figures(0.01234)
    ('1,234', '61.2', '0.0123')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure(works: Sequence[Workload], device: torch.device, seconds: float) -> list[list[float]]:
    """Seconds that each work takes, sample by sample. Works take turns, so that a busy moment meets all of them.

    Args:
        seconds: for all of them together, the first try included; what takes longer is done once.
    """
    begun = time.perf_counter()
    once = [_seconds(work, device, 1) for work in works]  # warms caches and kernels, too
    if time.perf_counter() - begun > seconds:
        return [[x] for x in once]
    times = [min(MOST, max(1, math.ceil(SHORTEST / max(x, 1e-9)))) for x in once]
    samples: list[list[float]] = [[] for _ in works]
    while len(samples[0]) < MOST_ROUNDS:
        late = time.perf_counter() - begun > seconds
        if late and (len(samples[0]) >= LEAST or (samples[0] and time.perf_counter() - begun > 2 * seconds)):
            break
        for work, many, found in zip(works, times, samples):
            found.append(_seconds(work, device, many))
    return samples


def _seconds(work: Workload, device: torch.device, times: int) -> float:
    _wait_for(device)
    begun = time.perf_counter()
    for _ in range(times):
        work.run()
    _wait_for(device)
    return max(time.perf_counter() - begun, 1e-9) / times


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def together(works: Sequence[Workload], samples: Sequence[Sequence[float]]) -> Rate:
    """The rate of all works in a row, each as often as its weight says and as fast as its own median."""
    amount = sum(x.amount * x.weight for x in works) / 1e9
    median, least, most = (
        amount / sum(x.weight * pick(took) for x, took in zip(works, samples)) for pick in (statistics.median, max, min)
    )
    return Rate(median, least, most, len(samples[0]))


# -- kinds of work ----------------------------------------------------------------------------------------------------


def product(
    shape: tuple[int, int],
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    kinds: Collection[str] = ("forward", "to input"),
    often: int = 1,
) -> Workload:
    """torch.mm as a layer [D_out, D_in] needs it on so many rows: forward, back to its input, back to its weight."""
    out, into = shape
    x, g, w = (_random(size, dtype, device) for size in ((rows, into), (rows, out), (out, into)))

    def run() -> None:
        if "forward" in kinds:
            torch.mm(x, w.T)
        if "to input" in kinds:
            torch.mm(g, w)
        if "to weight" in kinds:
            torch.mm(g.T, x)

    return Workload(torch.no_grad()(run), 2.0 * rows * out * into * len(kinds), often)


def copy(megabytes: int, device: torch.device) -> Workload:
    """A large copy; every byte is read once and written once."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Workload(lambda: target.copy_(source), 2.0 * source.numel())


def attention(
    size: tuple[int, int, int, int, int], causal: bool, dtype: torch.dtype, device: torch.device, backward: bool
) -> Workload:
    """torch's attention on rows of equal length; FLOPs are those of pairs that see one another.

    Args:
        size: (rows, length, heads, heads of keys and values, width of a head).
        backward: the way back, with the forward pass that it needs.
    """
    rows, length, heads, kv, wide = size
    q, k, v = (_random((rows, h, length, wide), dtype, device).requires_grad_(backward) for h in (heads, kv, kv))
    g = _random((rows, heads, length, wide), dtype, device)

    def run() -> None:
        y: Tensor = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv)
        if backward:
            torch.autograd.grad(y, (q, k, v), g)

    pairs = length * (length + 1) // 2 if causal else length * length
    return Workload(run, 4.0 * rows * heads * wide * pairs * (3 if backward else 1))


def _random(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    own = torch.Generator(device).manual_seed(0)
    return torch.randn(size, generator=own, device=device).to(dtype)


# -- other programs ---------------------------------------------------------------------------------------------------


class BackgroundLoad:
    """What other programs take of the machine's cores from now on."""

    def __init__(self) -> None:
        self.begun, self.busy, self.own = time.perf_counter(), _busy(), _own()

    def share(self) -> float:
        """0 to 1."""
        cores = (time.perf_counter() - self.begun) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (_busy() - self.busy - _own() + self.own) / max(cores, 1e-9)))


def _busy() -> float:
    """Seconds that all cores have worked."""
    now = psutil.cpu_times()
    return sum(getattr(now, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own() -> float:
    now = psutil.Process().cpu_times()
    return now.user + now.system
