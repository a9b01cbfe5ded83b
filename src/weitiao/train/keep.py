"""What is kept while a run goes on: the best weights so far, and the states to go on from."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from weitiao.core.errors import RecipeError, WeitiaoError
from weitiao.core.recipe import Train
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.tunable import TunableModel
from weitiao.train import checkpoint
from weitiao.train.distributed import Machines
from weitiao.train.plan import Plan
from weitiao.train.state import State


def validate(model: TunableModel, state: State, settings: Train, run: Run, score: Callable[[], dict]) -> None:
    """Measure; keep the weights if they are the best so far."""
    started = time.perf_counter()
    scores: dict[str, Score] = score()
    figures = {name: {"value": s.value, "low": s.low, "high": s.high, "n": s.n} for name, s in scores.items()}
    loss = scores["loss"].value if "loss" in scores else None
    here = {"step": state.step, "position": state.position}
    run.note("validation", **here, loss=loss, scores=figures, seconds=round(time.perf_counter() - started, 3))
    now = scores.get(settings.best)
    if now is not None and now.n == 0:
        raise RecipeError(
            f"train.best: {settings.best} cannot be measured on these held-out rows. Take loss, or other rows."
        )
    if now is None:  # nothing is held out: the newest is the best there is
        keep_weights(run, model, state)
        return
    better = state.best is None or (now.value > state.best if now.higher_is_better else now.value < state.best)
    if better:
        state.best, state.best_step, state.stale = now.value, state.step, 0
        keep_weights(run, model, state)
    else:
        state.stale += 1


def keep_weights(run: Run, model: TunableModel, state: State) -> None:
    """Write the learnt weights as the run's result so far."""
    if not run.writes:
        return
    folder: Path = run.folder / "trained"
    folder.mkdir(exist_ok=True)
    odd = [name for name, weight in model.trainable().items() if not bool(weight.isfinite().all())]
    if odd:
        raise WeitiaoError(
            f"{len(odd)} learnt weights are not finite, first {odd[0]}: they are not written as a result. "
            "Lower train.learning_rate, and leave train.guard on."
        )
    tensors: dict[str, Any] = {**model.trainable(), **{f"buffer.{n}": b for n, b in model.buffers().items()}}
    temp = folder / "weights.tmp"
    try:
        checkpoint.write_tensors(temp, tensors)
    except OSError as trouble:
        temp.unlink(missing_ok=True)
        raise WeitiaoError(f"the result cannot be written to {folder}: {trouble}. Make room and --resume.") from None
    temp.replace(folder / "weights.safetensors")
    run.write("trained/step.json", {"step": state.step})


def keep_the_first(run: Run, state: State, plan: Plan, machines: Machines, pinned: Collection[int]) -> None:
    """The base model is the first healthy state. A run that goes on removes what a kill gave it no time to remove."""
    if plan.guarded and state.position == 0:
        save_or_say(run, state, plan, machines, pinned)
    elif machines.first:
        checkpoint.prune(run.folder / "states", plan.settings.keep, pinned)


def save_or_say(run: Run, state: State, plan: Plan, machines: Machines, pinned: Collection[int] = ()) -> None:
    """Commit a state; a full disk is said loudly and the run goes on, older states intact."""
    if machines.first:
        started, here = time.perf_counter(), {"step": state.step, "position": state.position}
        try:
            place = checkpoint.save(run.folder / "states", state, plan.identity, plan.settings.keep, pinned)
            run.note("saved", **here, place=place.name, seconds=round(time.perf_counter() - started, 3))
        except OSError as trouble:
            words = f"step {state.step} could not be saved ({trouble}); older states are intact and the run goes on"
            run.note("save_failed", **here, words=words)
    machines.wait()
