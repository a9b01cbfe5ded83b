"""The whole training loop: fetch, count, back-propagate, judge, step, log, validate, save. Read it top to bottom."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from weitiao.core import events
from weitiao.core.batch import Batch
from weitiao.core.command import command
from weitiao.core.errors import Interrupted
from weitiao.core.objective import LossFunction
from weitiao.core.registry import find_module
from weitiao.core.run import Run
from weitiao.core.run_status import now
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.checkpoints.async_saver import Saver
from weitiao.train.checkpoints.best import validate
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.rollback import Rollback
from weitiao.train.settings import Plan
from weitiao.train.signals import Stop
from weitiao.train.step import Step


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
    """Take optimizer steps until plan.steps, an early stop or a signal.

    Args:
        loader: i -> the micro-batches of step i in this process.
        score: measures the current model on held-out rows.
        describe_row: a row's number -> its file, line and text, for suspects.jsonl.

    Raises:
        Interrupted, WeitiaoError: stopped by a signal (a checkpoint is saved), or by the guard.
    """
    settings, weights = plan.settings, list(model.trainable().values())
    compute_gradients, patience = find_module(Step, plan.step).compute_gradients, settings.patience or math.inf
    with Saver(run, state, plan, distributed) as saver:
        rollback = Rollback(model, objective, loader, state, plan, run, distributed, saver, describe_row)
        saver.start()
        model.model.train()
        while state.step < plan.steps and state.evals_since_best < patience:
            started = time.perf_counter()
            distributed.seed(plan.seed, state.data_step)
            window = _window(model, objective, loader, state)
            compute = partial(compute_gradients, model, objective, window, distributed)
            result, norm = state.loss_scale.compute_gradients(compute, weights)
            verdict = rollback.judge(result, float(norm))
            if accepted := verdict.action == "accept":
                learning_rate = _optimizer_step(model, state, plan, norm)
                seconds = round(time.perf_counter() - started, 4)
                run.log(result.event(state.step, state.data_step, float(norm), learning_rate, seconds))
            else:
                state.optimizer.zero_grad()
                state.data_step += 1
                rollback.skip_or_roll_back(verdict, result, float(norm), window)
            last = state.step == plan.steps
            if accepted and (last or (plan.evaluate_every and state.step % plan.evaluate_every == 0)):
                validate(model, state, settings, run, score)
            model.model.train()  # validation, and the losses of suspect rows, leave it in evaluation mode
            stopping, last = distributed.any(bool(stop)), last or state.evals_since_best >= patience
            if stopping or last or (accepted and plan.save_every and state.step % plan.save_every == 0):
                saver.save(in_background=not (stopping or last))
            saver.log_written()
            if stopping and not last:
                saver.wait()
                raise _interrupted(run, state, stop)
    if state.step < plan.steps:
        run.log(events.EarlyStop(state.step, state.data_step, state.best_step))
    model.model.eval()
    return state


def _window(model: TrainableModel, objective: LossFunction, loader: Callable, state: State) -> list[Batch]:
    """This step's micro-batches on the device; the method unfreezes what it trains from this step on."""
    if model.attachment.before_step is not None:
        model.attachment.before_step(state.step)
    return [objective.rollout(model, batch.to(model.device)) for batch in loader(state.data_step)]


def _interrupted(run: Run, state: State, stop: Stop) -> Interrupted:
    run.log(events.End("interrupted", state.step, state.data_step, now()))
    fields = {"step": state.step, "command": command(), "folder": run.folder}
    return Interrupted("stopped at step {step}; resume with: {command} train --resume {folder}", stop.exit_code, **fields)


def _optimizer_step(model: TrainableModel, state: State, plan: Plan, norm: Tensor) -> float:
    """Clip the gradients and take one optimizer step with them; returns its learning rate."""
    if plan.settings.max_grad_norm is not None:
        plan.settings.max_grad_norm.clip(model.trainable(), norm, state.clip)
    learning_rate = state.lr_factor * plan.rate_at(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1.0)
    state.optimizer.step()
    if model.attachment.after_step is not None:
        model.attachment.after_step(state.step, plan.steps)
    state.optimizer.zero_grad()
    state.step += 1
    state.data_step += 1
    return learning_rate
