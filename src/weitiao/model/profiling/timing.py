"""How fast this machine does what training consists of: matrix products, copies, attention. Medians, with n and range.

All operands are made here with a generator of their own, so measuring draws no random number that a run would draw.
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

PASSES = ("forward", "to input", "to weight")  # the products that a layer may need
MIN_SAMPLE_SECONDS = 2e-3  # shorter work is repeated until a sample takes this long
MAX_REPEATS = 200  # of work in one sample
MIN_SAMPLES = 3  # if there is time for them
MAX_SAMPLES = 25


@dataclass(frozen=True)
class Workload:
    """Something that can be run repeatedly, and its amount of work."""

    run: Callable[[], Any]
    amount: float
    """FLOPs, or bytes."""
    weight: float = 1.0
    """How often it occurs, relative to other workloads."""


@dataclass(frozen=True)
class Rate:
    """Work per second, in units of 10^9: the median of n samples, the lowest and the highest."""

    median: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float]:
        return {"median": round(self.median, 2), "low": round(self.low, 2), "high": round(self.high, 2), "n": self.n}

    def __str__(self) -> str:
        return f"{three_digits(self.median)} [{three_digits(self.low)}, {three_digits(self.high)}]"


def three_digits(value: float) -> str:
    """A number with three significant digits, or with all digits before the point.

    >>> three_digits(1234.5), three_digits(61.23), three_digits(0.01234)
    ('1,234', '61.2', '0.0123')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def measure(workloads: Sequence[Workload], device: torch.device, seconds: float) -> list[list[float]]:
    """Seconds that each workload takes, sample by sample. Workloads take turns, so that a busy moment affects all of them.

    Args:
        seconds: for all workloads together, the first try included; if that takes longer, it is the only sample.
    """
    start = time.perf_counter()
    first = [_seconds(workload, device, 1) for workload in workloads]  # it also warms caches and kernels
    if time.perf_counter() - start > seconds:
        return [[x] for x in first]
    repeats = [min(MAX_REPEATS, max(1, math.ceil(MIN_SAMPLE_SECONDS / max(x, 1e-9)))) for x in first]
    samples: list[list[float]] = [[] for _ in workloads]
    while len(samples[0]) < MAX_SAMPLES:
        elapsed = time.perf_counter() - start
        if elapsed > seconds and (len(samples[0]) >= MIN_SAMPLES or (samples[0] and elapsed > 2 * seconds)):
            break
        for workload, times, own_samples in zip(workloads, repeats, samples):
            own_samples.append(_seconds(workload, device, times))
    return samples


def _seconds(workload: Workload, device: torch.device, times: int) -> float:
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        workload.run()
    _synchronize(device)
    return max(time.perf_counter() - start, 1e-9) / times


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def combined_rate(workloads: Sequence[Workload], samples: Sequence[Sequence[float]]) -> Rate:
    """The rate of all workloads in sequence, each as often as its weight says and as fast as its own median."""
    amount = sum(x.amount * x.weight for x in workloads) / 1e9
    median, low, high = (
        amount / sum(x.weight * statistic(seconds) for x, seconds in zip(workloads, samples))
        for statistic in (statistics.median, max, min)
    )
    return Rate(median, low, high, len(samples[0]))


# -- kinds of work ----------------------------------------------------------------------------------------------------


def matmul_workload(
    shape: tuple[int, int],
    rows: int,
    dtype: torch.dtype,
    device: torch.device,
    passes: Collection[str] = ("forward", "to input"),
    count: int = 1,
) -> Workload:
    """torch.mm as a layer [D_out, D_in] needs it on this many rows.

    Args:
        passes: of PASSES: forward, back to its input, back to its weight.
        count: how many layers of this shape there are.
    """
    d_out, d_in = shape
    x, g, w = (_random(size, dtype, device) for size in ((rows, d_in), (rows, d_out), (d_out, d_in)))

    def run() -> None:
        if "forward" in passes:
            torch.mm(x, w.T)
        if "to input" in passes:
            torch.mm(g, w)
        if "to weight" in passes:
            torch.mm(g.T, x)

    return Workload(torch.no_grad()(run), 2.0 * rows * d_out * d_in * len(passes), count)


def copy_workload(megabytes: int, device: torch.device) -> Workload:
    """A large copy; every byte is read once and written once."""
    source = torch.ones(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Workload(lambda: target.copy_(source), 2.0 * source.numel())


def attention_workload(
    size: tuple[int, int, int, int, int], causal: bool, dtype: torch.dtype, device: torch.device, backward: bool
) -> Workload:
    """torch's attention on rows of equal length; its FLOPs are those of the pairs (query, key) that are not masked.

    Args:
        size: (rows, length, heads, heads of keys and values, width of a head).
        backward: also run the backward pass.
    """
    rows, length, heads, kv_heads, head_dim = size
    q, k, v = (
        _random((rows, n, length, head_dim), dtype, device).requires_grad_(backward) for n in (heads, kv_heads, kv_heads)
    )
    g = _random((rows, heads, length, head_dim), dtype, device)

    def run() -> None:
        y: Tensor = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)
        if backward:
            torch.autograd.grad(y, (q, k, v), g)

    pairs = length * (length + 1) // 2 if causal else length * length
    return Workload(run, 4.0 * rows * heads * head_dim * pairs * (3 if backward else 1))


def _random(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(size, generator=generator, device=device).to(dtype)


# -- other programs ---------------------------------------------------------------------------------------------------


class BackgroundLoad:
    """How much of the machine's cores other programs use from now on."""

    def __init__(self) -> None:
        self.start, self.all_at_start, self.own_at_start = time.perf_counter(), _all_seconds(), _own_seconds()

    def share(self) -> float:
        """Their share of all cores, 0 to 1."""
        core_seconds = (time.perf_counter() - self.start) * (os.cpu_count() or 1)
        others = (_all_seconds() - self.all_at_start) - (_own_seconds() - self.own_at_start)
        return min(1.0, max(0.0, others / max(core_seconds, 1e-9)))


def _all_seconds() -> float:
    """Seconds that all cores together have worked."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own_seconds() -> float:
    """Seconds of CPU time that this process has used."""
    times = psutil.Process().cpu_times()
    return times.user + times.system
