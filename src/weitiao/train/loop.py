"""The training loop, whole: fetch, count, back-propagate, judge, step, note, validate, save. Read it top to bottom."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from weitiao.core.batch import Batch
from weitiao.core.errors import Interrupted
from weitiao.core.machine import command
from weitiao.core.objective import Objective
from weitiao.core.registry import find_module
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.tunable import TunableModel
from weitiao.train.distributed import Machines
from weitiao.train.keep import keep_the_first, save_or_say, validate
from weitiao.train.plan import Plan
from weitiao.train.recover import Rescue
from weitiao.train.state import State
from weitiao.train.step import Taken
from weitiao.train.stop import Stop


def train(
    model: TunableModel,
    objective: Objective,
    loader: Callable[[int], list[Batch]],
    state: State,
    plan: Plan,
    run: Run,
    score: Callable[[], dict[str, Score]],
    machines: Machines,
    stop: Stop,
    tell_row: Callable[[int], dict[str, Any]] = lambda row: {"row": row},
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
    settings, weights = plan.settings, list(model.trainable().values())
    take, patience = find_module("step", plan.step).take, settings.patience or math.inf
    rescue = Rescue(model, objective, loader, state, plan, run, machines, tell_row)
    keep_the_first(run, state, plan, machines, rescue.pinned())
    model.model.train()
    while state.step < plan.steps and state.stale < patience:
        started = time.perf_counter()
        machines.seed(plan.seed, state.position)
        window = [objective.explore(model, batch.to(model.device)) for batch in loader(state.position)]
        taken = take(model, objective, window, machines)
        norm = torch.nn.utils.get_total_norm([x.grad for x in weights if x.grad is not None])
        verdict = rescue.judge(taken, float(norm))
        if sound := verdict.action == "take":
            torch.nn.utils.clip_grads_with_norm_(weights, settings.clip or math.inf, norm)
            rate = _move(model, state, plan)
            _note(run, state, taken, float(norm), rate, time.perf_counter() - started)
        else:
            state.optimizer.zero_grad()
            state.position += 1
            rescue.act(verdict, taken, float(norm), window)
            model.model.train()

        last = state.step == plan.steps
        if sound and (last or (plan.evaluate_every and state.step % plan.evaluate_every == 0)):
            validate(model, state, settings, run, score)
            model.model.train()
        asked, last = machines.any(bool(stop.asked)), last or state.stale >= patience
        if asked or last or (sound and plan.save_every and state.step % plan.save_every == 0):
            save_or_say(run, state, plan, machines, rescue.pinned())
        if asked and not last:
            run.note("interrupted", step=state.step, position=state.position)
            words = f"stopped at step {state.step}; go on with: {command()} train --resume {run.folder}"
            raise Interrupted(words, stop.asked)
    if state.step < plan.steps:
        run.note("early_stop", step=state.step, position=state.position, best_step=state.best_step)
    model.model.eval()
    return state


def _note(run: Run, state: State, taken: Taken, norm: float, rate: float, seconds: float) -> None:
    facts = {"loss": taken.loss, "grad_norm": norm, "learning_rate": rate, **taken.notes}
    counts = {"tokens": taken.tokens, "supervised": taken.supervised, "seconds": round(seconds, 4)}
    run.note("step", step=state.step, position=state.position, **facts, **counts)


def _move(model: TunableModel, state: State, plan: Plan) -> float:
    """One optimizer step with the gradients that are there; gives back its learning rate."""
    rate = state.rate * plan.rate_at(state.step)
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)
    state.optimizer.step()
    if model.attachment.after_step is not None:
        model.attachment.after_step(state.step)
    state.optimizer.zero_grad()
    state.step += 1
    state.position += 1
    return rate
