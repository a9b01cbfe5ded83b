"""How speed and memory grow: with the length of rows, the vocabulary, the model, the batch, and the share that is learnt.

    python bench/growth.py                       all five series; about 25 minutes on 2 cores, leave the machine alone
    python bench/growth.py --series length size  some of them
    python bench/growth.py --precision bf16      for CPUs with AVX512-BF16, with the compiled kernels; a third of the time
    python bench/growth.py --short               a model that does nearly nothing: does everything work?
    python bench/growth.py --gpu                 the same on a GPU, in bf16, all 30 layers; without one, --short

Each point is measured twice: with weitiao as it is, and with `train.implementation: plain`, which is transformers and autograd
under the same loop with the same method (LoRA). Each side is a process of its own, both start from the same random
weights and learn the same random rows, and they take turns step by step; the first step warms up and is not timed. What
is finished is kept in RESULTS/growth.json after each point, and a run that was killed goes on there; --again measures
everything anew.
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

import growth_chart
import growth_report
from growth_series import ENGINES, RANK, Point, Series, all_series, described
from growth_side import History, play
from kept import commit, known_cases, save
from machine import BackgroundLoad, processor
from weitiao.core.hardware import limit_primitive_cache

HERE = Path(__file__).resolve().parent
NAMES = [one.name for one in all_series(short=True, layers=2)]
FORK = multiprocessing.get_context("fork")  # what is imported here need not be imported again for every point


@dataclass
class Side:
    """A process that takes steps when told to."""

    name: str
    child: BaseProcess
    line: Connection
    busy: float = 0.0
    """Processor seconds it has used so far."""

    @classmethod
    def start(cls, engine: str, point: Point, options: argparse.Namespace) -> "Side":
        here, there = FORK.Pipe()
        given = (History(there, os.getpid()), point, engine, options.precision, options.threads, options.steps)
        child = FORK.Process(target=play, args=given, daemon=True)
        child.start()
        there.close()
        return cls(f"{point.name} by {engine}", child, here)

    def hear(self) -> dict:
        """What it says next.

        Raises:
            SystemExit: it is gone; why, it has said itself.
        """
        try:
            said = self.line.recv()
        except EOFError:
            self.child.join()
            raise SystemExit(f"{self.name} ended too early, with exit code {self.child.exitcode}.") from None
        self.busy = said.pop("busy")
        return said

    def turn(self) -> dict:
        self.line.send("go")
        return self.hear()

    def end(self) -> dict:
        """Its last words (what memory it needed); it is gone afterwards."""
        self.line.send("end")
        last = self.hear()
        self.child.join()
        return last


def measure(point: Point, options: argparse.Namespace) -> dict:
    """One point, both sides in turns; weitiao alone where the plain engine would need too much."""
    needs = point.plain_mb()
    names = [name for name in ENGINES if name == "weitiao" or needs <= 1024 * options.limit_gb]
    sides = {name: Side.start(name, point, options) for name in names}
    about = {name: side.hear() for name, side in sides.items()}
    neighbours, used = BackgroundLoad(), sum(side.busy for side in sides.values())
    turns: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(options.steps + 1):
        for name, side in sides.items():
            turns[name].append(side.turn())
    others = neighbours.share(sum(side.busy for side in sides.values()) - used)
    memory = {name: side.end() for name, side in sides.items()}
    return {
        "tokens": max(1, point.batch // point.length) * point.length,
        "blocks": {name: said["block"] for name, said in about.items()},
        "device": about["weitiao"]["device"],
        "seconds": {name: [one["seconds"] for one in played[1:]] for name, played in turns.items()},
        "losses": {name: [loss for one in played for loss in one["losses"]] for name, played in turns.items()},
        "memory": memory,
        "share_of_others": others,
        "left_out": "" if len(sides) == len(ENGINES) else f"the plain engine would need about {needs / 1024:.0f} GB",
    }


def setup(options: argparse.Namespace, series: list[Series]) -> dict:
    """What results must have in common to stand in one table."""
    return {
        "machine": processor() | {"threads": options.threads},
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
    """How long it will take, from what has to be multiplied."""
    seconds = sum(point.seconds(options.steps, options.gflops, list(ENGINES)) for point in points)
    return f"{len(points)} points, about {seconds / 60:.0f} minutes at {options.gflops:g} GFLOP/s"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two points a series, of a tiny model")
    parser.add_argument("--series", nargs="+", choices=NAMES, default=NAMES, help="default: all")
    parser.add_argument("--layers", type=int, default=4, help="of SmolLM2-135M's 30, where the size is not what grows")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a point")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: results/growth_bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--limit-gb", type=float, default=8, help="points for which the plain engine needs more are left out"
    )
    parser.add_argument("--gflops", type=float, default=130, help="of this machine in fp32, for the estimate")
    parser.add_argument("--estimate", action="store_true", help="say how long it would take, and stop")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument(
        "--gpu", action="store_true", help="on the first GPU; where there is none, the short form on the CPU"
    )
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # a look at the GPU that forks survive
    if options.gpu and not torch.cuda.is_available():
        print("There is no GPU here: the short form runs on the CPU.")
        options.gpu, options.short = False, True
    if options.gpu:
        options.layers, options.limit_gb, options.gflops, options.precision = 30, float("inf"), 100_000, "bf16"
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        limit_primitive_cache()  # as where a base is loaded
    return options


def write(results: dict, folder: Path, stem: str) -> None:
    (folder / f"{stem}.md").write_text(growth_report.markdown(results, f"{stem}.svg"), encoding="utf-8")
    (folder / f"{stem}.svg").write_text(growth_chart.draw(results), encoding="utf-8")


def main() -> None:
    options = read_options()
    series = all_series(options.short, options.layers)
    kind = "_gpu" if options.gpu else "_bf16" if options.precision == "bf16" else ""
    stem = "growth" + kind + "_short" * options.short
    file, here = options.results / f"{stem}.json", json.loads(json.dumps(setup(options, series)))
    wanted = {point.name: point for one in series if one.name in options.series for _, _, point in one.places}
    cases = known_cases(file, here)
    if options.again:
        cases = {name: case for name, case in cases.items() if name not in wanted}
    missing = [point for name, point in wanted.items() if name not in cases]
    print(estimate(missing, options), flush=True)
    if options.estimate:
        return
    options.results.mkdir(parents=True, exist_ok=True)
    for point in missing:
        cases[point.name] = measure(point, options)
        print(growth_report.line(point.name, cases[point.name]), flush=True)
        save(file, {"setup": here, "cases": cases})
    results = json.loads(file.read_text(encoding="utf-8"))
    write(results, options.results, stem)
    print("\n" + growth_report.tables(results))


if __name__ == "__main__":
    main()
