"""How speed and memory grow with row length, vocabulary, model size, batch size, and the share of supervised tokens.

    python -m bench.growth                       all five series; about 25 minutes on 2 cores, keep the machine idle
    python -m bench.growth --series length size  some of them
    python -m bench.growth --precision bf16      for CPUs with AVX512-BF16, with the compiled kernels; a third of the time
    python -m bench.growth --openmp=default      OpenMP threads wait as libgomp has it (with the =)
    python -m bench.growth --short               a tiny model: does everything work?
    python -m bench.growth --gpu                 the same on a GPU, in bf16, all 30 layers; without a GPU, --short

Each point is measured twice: weitiao's own implementation, and `train.implementation: reference`, which is transformers
and autograd in the same loop with the same method (LoRA). Each side is a process of its own, both start from the same
random weights and train on the same random rows, and they alternate step by step; the first step warms up and is not
timed. Each finished point is saved in RESULTS/growth.json, so a killed run continues there; --again measures everything
again.
"""

import argparse
import json
import multiprocessing
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from bench.growth import chart, report
from bench.growth.series import IMPLEMENTATIONS, RANK, Point, Series, all_series, described
from bench.growth.side import PipeChannel, run_side
from bench.shared.machine import OPENMP_CHOICES, OPENMP_HELP, BackgroundLoad, described_machine
from bench.shared.results_file import RESULTS, commit, load_cases, save
from weitiao.core.hardware import limit_primitive_cache

NAMES = [one.name for one in all_series(short=True, layers=2)]
FORK = multiprocessing.get_context("fork")  # children need not import everything again


@dataclass
class Side:
    """A process that takes a step on request."""

    name: str
    child: BaseProcess
    connection: Connection
    busy: float = 0.0
    """Processor seconds used so far."""

    @classmethod
    def start(cls, side: str, point: Point, options: argparse.Namespace) -> "Side":
        ours, theirs = FORK.Pipe()
        channel = PipeChannel(theirs, os.getpid())
        arguments = (channel, point, side, options.precision, options.threads, options.steps)
        child = FORK.Process(target=run_side, args=arguments, daemon=True)
        child.start()
        theirs.close()
        return cls(f"{point.name} by {side}", child, ours)

    def receive(self) -> dict:
        """Its next message.

        Raises:
            SystemExit: it has ended; it printed the reason itself.
        """
        try:
            message = self.connection.recv()
        except EOFError:
            self.child.join()
            raise SystemExit(f"{self.name} ended too early, with exit code {self.child.exitcode}.") from None
        self.busy = message.pop("busy")
        return message

    def run_step(self) -> dict:
        self.connection.send("go")
        return self.receive()

    def finish(self) -> dict:
        """Ends it and returns its last message (its memory)."""
        self.connection.send("end")
        last = self.receive()
        self.child.join()
        return last


def measure(point: Point, options: argparse.Namespace) -> dict:
    """One point, both sides in alternation; weitiao alone where the reference would need too much memory."""
    reference_mb = point.reference_mb()
    names = [name for name in IMPLEMENTATIONS if name == "weitiao" or reference_mb <= 1024 * options.limit_gb]
    sides = {name: Side.start(name, point, options) for name in names}
    facts = {name: side.receive() for name, side in sides.items()}
    background, used = BackgroundLoad(), sum(side.busy for side in sides.values())
    steps: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(options.steps + 1):
        for name, side in sides.items():
            steps[name].append(side.run_step())
    others = background.share(sum(side.busy for side in sides.values()) - used)
    memory = {name: side.finish() for name, side in sides.items()}
    skipped = len(sides) < len(IMPLEMENTATIONS)
    return {
        "tokens": max(1, point.batch // point.length) * point.length,
        "blocks": {name: fact["block"] for name, fact in facts.items()},
        "device": facts["weitiao"]["device"],
        "seconds": {name: [one["seconds"] for one in done[1:]] for name, done in steps.items()},
        "losses": {name: [loss for one in done for loss in one["losses"]] for name, done in steps.items()},
        "memory": memory,
        "share_of_others": others,
        "left_out": f"the reference would need about {reference_mb / 1024:.0f} GB" if skipped else "",
    }


def setup(options: argparse.Namespace, series: list[Series]) -> dict:
    """What results must have in common to share a table."""
    return {
        "machine": described_machine(options.threads, options.openmp),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
            "weitiao": commit(),
        },
        "precision": options.precision,
        "rank": RANK,
        "layers": 2 if options.short else options.layers,
        "steps": options.steps,
        "limit_gb": options.limit_gb,
        **described(series),
    }


def estimate(points: list[Point], options: argparse.Namespace) -> str:
    """How long it will take, from its FLOPs."""
    seconds = sum(point.seconds(options.steps, options.gflops, list(IMPLEMENTATIONS)) for point in points)
    return f"{len(points)} points, about {seconds / 60:.0f} minutes at {options.gflops:g} GFLOP/s"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two points per series, of a tiny model")
    parser.add_argument("--series", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--layers", type=int, default=4, help="of SmolLM2-135M's 30, except in the series of model sizes")
    parser.add_argument("--steps", type=int, default=3, help="timed steps per point")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: results/growth_bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--openmp", choices=OPENMP_CHOICES, default="weitiao", help=f"{OPENMP_HELP}; write it with =")
    parser.add_argument("--limit-gb", type=float, default=8, help="points for which the reference needs more are left out")
    parser.add_argument("--gflops", type=float, default=130, help="speed of this machine in fp32, for the estimate")
    parser.add_argument("--estimate", action="store_true", help="print the estimated time and stop")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="also measure what is saved already")
    parser.add_argument(
        "--gpu", action="store_true", help="on the first GPU; where there is none, the short form on the CPU"
    )
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # a GPU check that survives fork
    if options.gpu and not torch.cuda.is_available():
        print("There is no GPU here: the short form runs on the CPU.")
        options.gpu, options.short = False, True
    if options.gpu:
        options.layers, options.limit_gb, options.gflops, options.precision = 30, float("inf"), 100_000, "bf16"
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        limit_primitive_cache()  # as loading a base does
    return options


def write(results: dict, folder: Path, stem: str) -> None:
    (folder / f"{stem}.md").write_text(report.markdown(results, f"{stem}.svg"), encoding="utf-8")
    (folder / f"{stem}.svg").write_text(chart.draw(results), encoding="utf-8")


def main() -> None:
    options = read_options()
    series = all_series(options.short, options.layers)
    kind = "_gpu" if options.gpu else "_bf16" if options.precision == "bf16" else ""
    stem = "growth" + kind + "_openmp_default" * (options.openmp == "default") + "_short" * options.short
    file, current = options.results / f"{stem}.json", json.loads(json.dumps(setup(options, series)))
    selected = {point.name: point for one in series if one.name in options.series for _, _, point in one.points}
    cases = load_cases(file, current)
    if options.again:
        cases = {name: case for name, case in cases.items() if name not in selected}
    missing = [point for name, point in selected.items() if name not in cases]
    print(estimate(missing, options), flush=True)
    if options.estimate:
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for point in missing:
        cases[point.name] = measure(point, options)
        print(report.line(point.name, cases[point.name]), flush=True)
        save(file, {"setup": current, "cases": cases})
    results = json.loads(file.read_text(encoding="utf-8"))
    write(results, options.results, stem)
    print("\n" + report.tables(results))


if __name__ == "__main__":
    main()
