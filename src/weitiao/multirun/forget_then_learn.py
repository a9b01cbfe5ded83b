"""Forget, then learn: F-Learning at several rates beside plain learning, all from the same base, rows, steps and seed.

    out/old          the base learns the old facts
    out/plain        the base learns the new facts, nothing is forgotten: what the others are held against
    out/rate-0.3 ... the base less 0.3 times what `old` learnt, learns the new facts          (methods/f_learning.py)
    out/rates.json   what each says: of the recipe's held-out rows, and of any other files (`also`: facts that should stay)

The best rate is chosen by the loss on the recipe's `validation` rows. Held-out rows of their own (`evaluate.data`)
have then had no say in the choice.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.events import Validation
from weitiao.core.files import write_text
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.run import Run
from weitiao.core.score import format_score
from weitiao.multirun.subprocess_run import measure_apart, train_apart

HELD_OUT = "held-out rows"
RATES = (0.1, 0.3, 0.7, 1.5)


@dataclass
class Candidate:
    """One way to the new facts."""

    name: str
    scores: dict[str, dict[str, Any]]
    """By what it was measured on, then by figure."""
    validation: float | None = None
    """The loss by which the best is chosen; None: it had no part in the choice."""
    best: bool = False

    def lines(self) -> list[list[str]]:
        """Of the table: a line for everything that it was measured on."""
        figures = [(on, [format_score(name, x) for name, x in scores.items()]) for on, scores in self.scores.items()]
        name = f"{self.name} *" if self.best else self.name
        return [["" if i else name, on, *words] for i, (on, words) in enumerate(figures)]


def forget_then_learn(
    recipe: Recipe,
    old: str,
    rates: Sequence[float] = RATES,
    also: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda words: None,
) -> list[Candidate]:
    """Train what is not trained yet, and measure; the base model comes first, then the ways in the order of their rates.

    Args:
        recipe: how the new facts are learnt; its method is used for the old ones too.
        old: a file of the old facts.
        also: name -> a file that everything is measured on besides.

    Raises:
        RecipeError: the method cannot do this.
        RunError: a run failed.
    """
    if recipe.method.name == "f_learning":
        raise RecipeError("method: name the one that learns (lora, full); the forgetting is added here.")
    out, plain = Path(recipe.out), recipe.model_dump(mode="json")
    settings = {**plain["evaluate"], "data": None, "metrics": ["loss"], "samples": 0}
    tell("the old facts")
    _train({**plain, "data": [{"path": old}], "replay": None, "validation": 0.0, "evaluate": settings}, out / "old")
    ways = []
    for i, rate in enumerate((0.0, *rates)):
        name = f"rate {rate:g}" if rate else "plain"
        tell(f"the new facts, {name} ({i + 1} of {len(rates) + 1})")
        method = {"name": "f_learning", "forget_run": str(out / "old"), "forget_lambda": rate, "method": plain["method"]}
        run = _train({**plain, **({"method": method} if rate else {})}, out / name.replace(" ", "-"))
        if not rate:
            ways.append(_base(recipe, run, also or {}))
        measured = {on: measure_apart(str(run.folder), file) for on, file in (also or {}).items()}
        ways.append(Candidate(name, {HELD_OUT: run.read("scores.json", {}).get("after", {}), **measured}, _validation(run)))
    judged = [way for way in ways if way.validation is not None]
    if judged:
        min(judged, key=lambda way: way.validation or 0.0).best = True
    write_text(out / "rates.json", json.dumps([asdict(way) for way in ways], indent=1, ensure_ascii=False) + "\n")
    return ways


def _train(plain: dict[str, Any], place: Path) -> Run:
    asked = make_recipe({**plain, "out": str(place)})
    if refused := train_apart(asked, place.with_suffix(f"{place.suffix}.yaml")):
        raise RecipeError(f"method: {refused}")
    return Run.open(place)


def _base(recipe: Recipe, run: Run, also: Mapping[str, str]) -> Candidate:
    """Before anything was learnt. (A base alone is measured as chats, in its own template.)"""
    chats = recipe.objective.name == "sft" and recipe.chat_template is None and recipe.revision is None
    measured = {on: measure_apart(recipe.base, file) for on, file in also.items()} if chats else {}
    return Candidate("base", {HELD_OUT: run.read("scores.json", {}).get("before", {}), **measured})


def _validation(run: Run) -> float | None:
    """The loss at the validation whose weights were kept; None if nothing is held out."""
    kept = run.read("best/step.json")["step"]
    losses = [x.loss for x in run.events(Validation) if x.step == kept and x.loss is not None]
    return losses[-1] if losses else None


def head(ways: Sequence[Candidate]) -> list[str]:
    """The table's head: every figure with its n and its interval."""
    return ["way", "measured on", *(f"{name} [95 % interval]" for name in next(iter(ways[-1].scores.values())))]
