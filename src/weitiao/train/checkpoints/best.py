"""What is kept as a run's result: the weights that validated best so far."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from weitiao.core.errors import RecipeError, RunError, WeitiaoError
from weitiao.core.recipe_sections import Train
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.state import State, load_weights


def validate(model: TrainableModel, state: State, settings: Train, run: Run, score: Callable[[], dict]) -> None:
    """Measure; keep the weights if they are the best so far."""
    started = time.perf_counter()
    scores: dict[str, Score] = score()
    figures = {name: {"value": s.value, "low": s.low, "high": s.high, "n": s.n} for name, s in scores.items()}
    loss = scores["loss"].value if "loss" in scores else None
    here = {"step": state.step, "position": state.position}
    run.log_event("validation", **here, loss=loss, scores=figures, seconds=round(time.perf_counter() - started, 3))
    now = scores.get(settings.best_metric)
    if (now is None and "loss" in scores) or (now is not None and now.n == 0):
        raise RecipeError(
            f"train.best_metric: {settings.best_metric} cannot be measured on these held-out rows. Take loss, or other rows."
        )
    if now is None:  # nothing is held out: the newest is the best there is
        save_best(run, model, state)
        return
    better = state.best is None or (now.value > state.best if now.higher_is_better else now.value < state.best)
    if better:
        state.best, state.best_step, state.evals_since_best = now.value, state.step, 0
        save_best(run, model, state)
    else:
        state.evals_since_best += 1


def save_best(run: Run, model: TrainableModel, state: State) -> None:
    """Write the learnt weights as the run's result so far."""
    if not run.can_write:
        return
    folder: Path = run.folder / "best"
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
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise WeitiaoError(f"the result cannot be written to {folder}: {error}. Make room and --resume.") from None
    temp.replace(folder / "weights.safetensors")
    run.write("best/step.json", {"step": state.step})


def restore_best(run: Run, model: TrainableModel) -> None:
    """Give the model the run's result.

    Raises:
        RunError: it is missing or damaged.
    """
    file = run.folder / "best" / "weights.safetensors"
    try:
        load_weights(model, load_file(file))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise RunError(f"{file} is missing or damaged ({error}): the run's result cannot be read.") from None


def repair_best(run: Run, model: TrainableModel, state: State, say: Callable[[str], None]) -> None:
    """A run that goes on, and whose result is lost: take it from the state of the best step, if that is there.

    Raises:
        RunError: it is nowhere.
    """
    file, step = run.folder / "best" / "weights.safetensors", state.step if state.best is None else state.best_step
    place = run.folder / "checkpoints" / f"step-{step:06d}"
    if (state.best is None and state.step < 1) or not run.can_write or _is_readable(file):
        return
    if checkpoint.broken(place):
        raise RunError(
            f"{file} is missing or damaged, and so is the state of step {step}, which had the result. Train anew with "
            "--replace (the old run is kept aside), or name another folder with out=..."
        )
    lost = state.best is not None or file.parent.exists()  # stopped before its first validation, a run has none yet
    file.parent.mkdir(exist_ok=True)
    checkpoint.write_tensors(file, load_file(place / "weights.safetensors"))
    run.write("best/step.json", {"step": step})
    if lost:
        say(f"{file} was missing or damaged; it was written anew from {place.name}.")


def _is_readable(file: Path) -> bool:
    try:
        load_file(file)
    except (OSError, SafetensorError):
        return False
    return True
