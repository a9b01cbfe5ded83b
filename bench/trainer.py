"""weitiao beside the Hugging Face Trainer: the same model, rows, rate, steps and precision.

    python bench/trainer.py                      all; about an hour on 2 cores in bf16, leave the machine alone
    python bench/trainer.py --tasks tagging      some of them
    python bench/trainer.py --limit 16           that few rows, twice at most, one turn: does everything work?

Four tasks tune all weights, three only some: LoRA (beside PEFT), and the highest layers over five epochs, where
weitiao runs the frozen layers once. In fp32 (or with --precision bf16) with AdamW (0.9, 0.999, 1e-8, no decay), one
rate for body and head, a linear schedule that ends at nought, clipping at 1.0, the model's own dropout. The sides take
turns, in alternating order, with seeds 0, 1, 2; each training is a process of its own and what is finished is kept: a
killed run goes on.

On 2 cores with bf16 instructions the seven jobs took about 24 minutes in the turn with the grouped Trainer (--grouped)
and 14 in one without; fp32 takes longer. What is the same and what differs: bench/RESULTS.md.
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

import trainer_report
import trainer_weitiao
from kept import commit, known_cases, save
from machine import BackgroundLoad, alone, last_line, processor
from trainer_tasks import BEFORE, TASKS, Task, figures_of, rows_of

HERE = Path(__file__).resolve().parent
SIDES = ("Trainer", "weitiao", "grouped")


class Bench:
    """What all trainings share: rows, models, environment."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.environment = alone(options.threads)

    def call(self, *command: str) -> str:
        """The last line that a Python process prints."""
        return last_line([*command], self.environment)

    def docstrings(self, task: Task) -> Path:
        """A folder with functions of the standard library and what they say of themselves."""
        folder = self.work / "docstrings"
        if not folder.exists():
            model = self.call("-m", "weitiao", "base", task.model, "--print-folder")
            sizes = ("--train", str(task.train), "--validation", str(task.test))
            self.call(str(HERE / "docstring_rows.py"), "--model", model, *sizes, "--out", str(folder))
            for name, written in (("train", "train"), ("test", "validation")):
                (folder / f"{written}.jsonl").rename(folder / f"docstrings_{name}.jsonl")
        return folder

    def asked(self, task: Task, seed: int, grouped: bool) -> dict:
        """What a side is told."""
        model = task.model if task.model.startswith("package:") else str(self.options.data / task.model)
        files, data = {}, self.docstrings(task) if task.data == "docstrings" else self.options.data
        for name, many in (("train", task.train), ("test", task.test)):
            files[name] = str(self.work / f"{task.data}_{name}.jsonl")
            rows = rows_of(task, data, name, min(many, self.options.limit or many))
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            Path(files[name]).write_text("".join(lines), encoding="utf-8")
        return {
            "task": task.name,
            "objective": task.objective,
            "model": model,
            **files,
            "context": task.context,
            "method": task.method,
            "layers": task.layers,
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
        asked, neighbours = self.asked(task, seed, side == "grouped"), BackgroundLoad()
        if side == "weitiao":
            with tempfile.TemporaryDirectory(dir=self.work) as folder:
                found = trainer_weitiao.play(asked, Path(folder), self.call)
        else:
            if asked["model"].startswith("package:"):
                asked["model"] = self.call("-m", "weitiao", "base", asked["model"], "--print-folder")
            found = json.loads(self.call(str(HERE / "trainer_hf.py"), json.dumps(asked)))
        return {
            "seconds": found["seconds"],
            "steps": found["steps"],
            "windows": len(found["losses"]),
            "before": fmean(a / b for a, b in found["before"][:BEFORE]),
            "rows": figures_of(task, found["said"], found["losses"]),
            "share_of_others": neighbours.share(),
        }


def order_of(turn: int, options: argparse.Namespace) -> Sequence[str]:
    """Who plays in a turn: A B, then B A, then A B ..."""
    sides = SIDES if turn < options.grouped else SIDES[:2]
    return sides if turn % 2 == 0 else sides[::-1]


def setup(options: argparse.Namespace) -> dict:
    """What results must have in common to stand in one table."""
    return {
        "machine": processor() | {"threads": options.threads},
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
    parser.add_argument("--tasks", nargs="+", choices=names, metavar="TASK", help=f"of: {'; '.join(names)}")
    parser.add_argument("--limit", type=int, help="so few rows to learn and to ask about, one turn: does everything work?")
    parser.add_argument("--repeats", type=int, default=3, help="turns, each with a seed of its own")
    parser.add_argument("--grouped", type=int, default=1, help="turns in which the grouped Trainer plays too")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: results/trainer_bf16.json")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=Path, default=HERE.parent / "quickstart" / "data", help="rows and small models")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    options = parser.parse_args()
    options.data = options.data.resolve()
    if options.limit:
        options.repeats, options.grouped = 1, min(options.grouped, 1)
    options.tasks = options.tasks or names
    return options


def main() -> None:
    """Train in turns, keep what is finished, print the tables."""
    options = read_options()
    stem = "trainer" + ("_short" if options.limit else "") + ("" if options.precision == "fp32" else "_bf16")
    file, here = options.results / f"{stem}.json", json.loads(json.dumps(setup(options)))
    cases = known_cases(file, here)
    if options.again:
        cases = {name: case for name, case in cases.items() if name not in options.tasks}
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options, Path(work))
        for turn in range(options.repeats):
            for task in [task for task in TASKS if task.name in options.tasks]:
                played = cases.setdefault(task.name, {})
                for side in order_of(turn, options):
                    if str(turn) not in played.setdefault(side, {}):
                        played[side][str(turn)] = bench.train(task, side, turn)
                        print(trainer_report.line(task.name, side, turn, played[side][str(turn)]), flush=True)
                        ordered = {task.name: cases[task.name] for task in TASKS if task.name in cases}
                        save(file, {"setup": here, "cases": ordered})
    results = json.loads(file.read_text(encoding="utf-8"))
    said = trainer_report.markdown(results)
    (options.results / f"{stem}.md").write_text(said, encoding="utf-8")
    print("\n" + said)


if __name__ == "__main__":
    main()
