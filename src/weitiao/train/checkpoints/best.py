"""The result of a run: the weights with the best validation score so far."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from weitiao.core import events
from weitiao.core.errors import InvalidValue, RecipeError, RunError, WeitiaoError, message_of
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Train
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.state import State, load_weights


def validate(model: TrainableModel, state: State, settings: Train, run: Run, score: Callable[[], dict]) -> None:
    """Measure on the validation rows; save the weights if they are the best so far.

    Raises:
        RecipeError: `train.best_metric` cannot be measured on these rows.
    """
    started = time.perf_counter()
    scores: dict[str, Score] = score()
    records = {name: {"value": s.value, "low": s.low, "high": s.high, "n": s.n} for name, s in scores.items()}
    loss, seconds = scores["loss"].value if "loss" in scores else None, round(time.perf_counter() - started, 3)
    run.log(events.Validation(state.step, state.data_step, loss, records, seconds))
    metric = settings.best_metric
    current = scores.get(metric)
    if (current is None and "loss" in scores) or (current is not None and current.n == 0):
        raise RecipeError(
            "train.best_metric: {metric} cannot be measured on these held-out rows. Use loss, or other rows.", metric=metric
        )
    if current is None:  # nothing is held out: the newest weights are the result
        save_best(run, model, state)
        return
    value, best = current.value, state.best_score
    if math.isnan(value):  # not comparable, and no improvement
        state.evals_since_best += 1
        if best is None:
            save_best(run, model, state)
    elif best is None or (value > best if current.higher_is_better else value < best):
        state.best_score, state.best_step, state.evals_since_best = value, state.step, 0
        save_best(run, model, state, metric)
    else:
        state.evals_since_best += 1


def save_best(run: Run, model: TrainableModel, state: State, metric: str | None = None) -> None:
    """Write the trained weights as the run's result so far.

    Args:
        metric: what they are the best by; None: they are the newest.

    Raises:
        WeitiaoError: a weight is not finite, or the disk is full.
    """
    if not run.can_write:
        return
    folder: Path = run.folder / "best"
    folder.mkdir(exist_ok=True)
    non_finite = [name for name, weight in model.trainable().items() if not bool(weight.isfinite().all())]
    if non_finite:
        raise WeitiaoError(
            "{n} trained tensors are not finite, first {name}: they are not saved as a result. "
            "Lower train.learning_rate, and leave train.guard on.",
            n=len(non_finite),
            name=non_finite[0],
        )
    tensors: dict[str, Any] = {**model.trainable(), **{f"buffer.{n}": b for n, b in model.buffers().items()}}
    temp = folder / "weights.tmp"
    try:
        checkpoint.write_tensors(temp, tensors)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise WeitiaoError(
            "the result cannot be written to {folder}: {error}. Free some disk space and --resume.",
            folder=folder,
            error=str(error),
        ) from None
    temp.replace(run.best_weights)
    run.write("best/step.json", {"step": state.step, "metric": metric})


def restore_best(run: Run, model: TrainableModel) -> None:
    """Give the model the run's result.

    Raises:
        RunError: it is missing or damaged.
    """
    file = run.best_weights
    try:
        load_weights(model, load_file(file))
    except (OSError, SafetensorError, InvalidValue, RuntimeError) as error:
        raise RunError(
            "{file} is missing or damaged ({error}): the run's result cannot be read.", file=file, error=message_of(error)
        ) from None


def repair_best(run: Run, state: State, metric: str, warn: Callable[[Message], None]) -> None:
    """Restore a lost or damaged result of a resumed run from the checkpoint of the best step, if that is there.

    Args:
        metric: what the best is chosen by.

    Raises:
        RunError: that checkpoint is damaged too.
    """
    file, step = run.best_weights, state.step if state.best_score is None else state.best_step
    source = run.folder / "checkpoints" / f"step-{step:06d}"
    if (state.best_score is None and state.step < 1) or not run.can_write or _is_readable(file):
        return
    if checkpoint.find_damage(source):
        raise RunError(
            "{file} is missing or damaged, and so is the checkpoint of step {step}, which had the result. Train again with "
            "--overwrite (the old run is moved away), or name another folder with out=...",
            file=file,
            step=step,
        )
    was_lost = state.best_score is not None or file.parent.exists()  # before its first validation, a run has no result
    file.parent.mkdir(exist_ok=True)
    checkpoint.write_tensors(file, load_file(source / "weights.safetensors"))
    run.write("best/step.json", {"step": step, "metric": None if state.best_score is None else metric})
    if was_lost:
        warn(
            Message("{file} was missing or damaged; it was restored from {checkpoint}.", file=file, checkpoint=source.name)
        )


def _is_readable(file: Path) -> bool:
    try:
        load_file(file)
    except (OSError, SafetensorError):
        return False
    return True
