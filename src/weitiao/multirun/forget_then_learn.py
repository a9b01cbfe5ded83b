"""Forget, then learn: F-Learning with several rates next to plain fine-tuning, on one base, data, steps and seed.

    out/forget       the base is trained on the old facts
    out/plain        the base is trained on the new facts, nothing is forgotten: what the others are compared with
    out/lambda-0.3   the base minus 0.3 times the task vector of `forget`, trained on the new facts (methods/f_learning.py)
    out/lambdas.json the scores of each: on the recipe's held-out rows, and on other files (facts that should stay)

The best rate is the one with the lowest loss on the recipe's `validation` rows. Held-out rows of their own
(`evaluate.data`) have no part in that choice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.events import Validation
from weitiao.core.files import write_text
from weitiao.core.messages import Message, translate
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.run import Run
from weitiao.core.score import format_score
from weitiao.multirun.subprocess_run import measure_in_subprocess, train_in_subprocess

HELD_OUT = "held_out"  # in lambdas.json: the recipe's held-out rows
LAMBDAS = (0.1, 0.3, 0.7, 1.5)


@dataclass
class Candidate:
    """One way to the new facts."""

    name: str
    """base, plain, or lambda 0.3"""
    scores: dict[str, dict[str, Any]]
    """By what it was measured on, then by metric."""
    validation: float | None = None
    """The loss that the best is chosen by; None: not a candidate for that."""
    best: bool = False

    def lines(self) -> list[list[str]]:
        """Lines of the table: one for everything that it was measured on."""
        name = f"{self.name} *" if self.best else self.name
        cells = {data: [format_score(metric, x) for metric, x in scores.items()] for data, scores in self.scores.items()}
        return [
            ["" if i else name, translate("held-out rows") if data == HELD_OUT else data, *texts]
            for i, (data, texts) in enumerate(cells.items())
        ]


def forget_then_learn(
    recipe: Recipe,
    forget_data: str,
    lambdas: Sequence[float] = LAMBDAS,
    eval_files: Mapping[str, str] | None = None,
    report: Callable[[Message], None] = lambda message: None,
) -> list[Candidate]:
    """Train what is not trained yet, and measure. The base model comes first, then the candidates by their lambda.

    Args:
        recipe: how the new facts are learned; its method is used for the old ones too.
        forget_data: a file of the old facts.
        eval_files: name -> another file that everything is measured on.

    Raises:
        RecipeError: the method cannot do this.
        RunError: a run failed.
    """
    if recipe.method.name == "f_learning":
        raise RecipeError("method: name the method that trains (lora, full); f_learning is added by this command.")
    out, plain, files = Path(recipe.out), recipe.model_dump(mode="json"), eval_files or {}
    settings = {**plain["evaluate"], "data": None, "metrics": ["loss"], "samples": 0}
    report(Message("training on the old facts"))
    _train(
        {**plain, "data": [{"path": forget_data}], "replay": None, "validation": 0.0, "evaluate": settings}, out / "forget"
    )
    candidates: list[Candidate] = []
    for i, factor in enumerate((0.0, *lambdas), 1):
        name = f"lambda {factor:g}" if factor else "plain"
        report(Message("training on the new facts: {name} ({i} of {n})", name=name, i=i, n=len(lambdas) + 1))
        method = {
            "name": "f_learning",
            "forget_run": str(out / "forget"),
            "forget_lambda": factor,
            "method": plain["method"],
        }
        run = _train({**plain, **({"method": method} if factor else {})}, out / name.replace(" ", "-"))
        if not factor:
            candidates.append(_base(recipe, run, files))
        scores = {data: measure_in_subprocess(str(run.folder), file) for data, file in files.items()}
        candidates.append(Candidate(name, {HELD_OUT: run.scores.get("after", {}), **scores}, _validation_loss(run)))
    comparable = [x for x in candidates if x.validation is not None]
    if comparable:
        min(comparable, key=lambda x: x.validation or 0.0).best = True
    record = json.dumps([asdict(x) for x in candidates], indent=1, ensure_ascii=False)
    write_text(out / "lambdas.json", record + "\n")
    return candidates


def _train(plain: dict[str, Any], folder: Path) -> Run:
    recipe = make_recipe({**plain, "out": str(folder)})
    if refusal := train_in_subprocess(recipe, folder.with_suffix(f"{folder.suffix}.yaml")):
        raise RecipeError(refusal)
    return Run.open(folder)


def _base(recipe: Recipe, run: Run, files: Mapping[str, str]) -> Candidate:
    """Before training. (A base model alone is measured as a chat model, in its own template.)"""
    is_chat = recipe.objective.name == "sft" and recipe.chat_template is None and recipe.revision is None
    scores = {data: measure_in_subprocess(recipe.base, file) for data, file in files.items()} if is_chat else {}
    return Candidate("base", {HELD_OUT: run.scores.get("before", {}), **scores})


def _validation_loss(run: Run) -> float | None:
    """The loss at the validation of the best weights; None if no row is held out."""
    best = run.read("best/step.json")["step"]
    losses = [x.loss for x in run.events(Validation) if x.step == best and x.loss is not None]
    return losses[-1] if losses else None


def head(candidates: Sequence[Candidate]) -> list[str]:
    """The head of the table: every score has its n and its interval."""
    metrics = next(iter(candidates[-1].scores.values()))
    return [
        translate("model"),
        translate("measured on"),
        *(str(Message("{metric} [95 % interval]", metric=x)) for x in metrics),
    ]
