"""The training loop, whole: fetch, count, back-propagate, judge, step, note, validate, save. Read it top to bottom."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from weitiao.core.batch import Batch
from weitiao.core.command import command
from weitiao.core.errors import Interrupted
from weitiao.core.objective import LossFunction
from weitiao.core.registry import find_module
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.checkpoints.async_saver import Saver
from weitiao.train.checkpoints.best import validate
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.rollback import Rollback
from weitiao.train.settings import Plan
from weitiao.train.signals import Stop
from weitiao.train.step import Step, StepResult


def train(
    model: TrainableModel,
    objective: LossFunction,
    loader: Callable[[int], list[Batch]],
    state: State,
    plan: Plan,
    run: Run,
    score: Callable[[], dict[str, Score]],
    distributed: Distributed,
    stop: Stop,
    describe_row: Callable[[int], dict[str, Any]] = lambda row: {"row": row},
) -> State:
    """Take optimizer steps until plan.steps, or until validation has nothing better to say, or until stopped.

    Args:
        loader: i -> the micro-batches of step i on this machine.
        score: measures the model as it is now, on held-out rows.
        tell_row: a row's number -> where it stands and what it says, for complaints.

    Raises:
        Interrupted: a signal came; the state is saved.
        WeitiaoError: the guard sees no way on; the last healthy state is the result.
    """
    settings, trained = plan.settings, list(model.trainable().values())
    compute_gradients, patience = find_module(Step, plan.step).compute_gradients, settings.patience or math.inf
    with Saver(run, state, plan, distributed) as saver:
        rescue = Rollback(model, objective, loader, state, plan, run, distributed, saver, describe_row)
        saver.begin()
        model.model.train()
        while state.step < plan.steps and state.evals_since_best < patience:
            started = time.perf_counter()
            distributed.seed(plan.seed, state.position)
            window = _window(model, objective, loader, state)
            taken, norm = state.loss_scale.compute_gradients(
                partial(compute_gradients, model, objective, window, distributed), trained
            )
            verdict = rescue.judge(taken, float(norm))
            if sound := verdict.action == "take":
                rate = _move(model, state, plan, norm)
                _note(run, state, taken, float(norm), rate, time.perf_counter() - started)
            else:
                state.optimizer.zero_grad()
                state.position += 1
                rescue.act(verdict, taken, float(norm), window)
            last = state.step == plan.steps
            if sound and (last or (plan.evaluate_every and state.step % plan.evaluate_every == 0)):
                validate(model, state, settings, run, score)
            model.model.train()  # measuring, and a look at suspect rows, leave it in evaluation mode
            asked, last = distributed.any(bool(stop.asked)), last or state.evals_since_best >= patience
            if asked or last or (sound and plan.save_every and state.step % plan.save_every == 0):
                saver.save(going_on=not (asked or last))
            saver.notice()
            if asked and not last:
                saver.finish()
                raise _interrupted(run, state, stop)
    if state.step < plan.steps:
        run.log_event("early_stop", step=state.step, position=state.position, best_step=state.best_step)
    model.model.eval()
    return state


def _window(
    model: TrainableModel, objective: LossFunction, loader: Callable[[int], list[Batch]], state: State
) -> list[Batch]:
    """This step's micro-batches on the device, and the model unfrozen as far as it shall be by now."""
    if model.attachment.before_step is not None:
        model.attachment.before_step(state.step)
    return [objective.rollout(model, batch.to(model.device)) for batch in loader(state.position)]


def _note(run: Run, state: State, taken: StepResult, norm: float, rate: float, seconds: float) -> None:
    facts = {"loss": taken.loss, "grad_norm": norm, "learning_rate": rate, **taken.notes}
    counts = {"tokens": taken.tokens, "supervised": taken.supervised, "seconds": round(seconds, 4)}
    run.log_event("step", step=state.step, position=state.position, **facts, **counts)


def _interrupted(run: Run, state: State, stop: Stop) -> Interrupted:
    run.log_event("interrupted", step=state.step, position=state.position)
    words = f"stopped at step {state.step}; go on with: {command()} train --resume {run.folder}"
    return Interrupted(words, stop.asked)


def _move(model: TrainableModel, state: State, plan: Plan, norm: Tensor) -> float:
    """Clip, and take one optimizer step with the gradients that are there; gives back its learning rate."""
    if plan.settings.max_grad_norm is not None:
        plan.settings.max_grad_norm.clip(model.trainable(), norm, state.clip)  # pyright: ignore[reportAttributeAccessIssue]
    rate = state.rate * plan.rate_at(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    state.optimizer.step()
    if model.attachment.after_step is not None:
        model.attachment.after_step(state.step, plan.steps)
    state.optimizer.zero_grad()
    state.step += 1
    state.position += 1
    return rate
