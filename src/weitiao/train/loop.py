"""The training loop, whole: fetch, count, back-propagate, clip, step, note, validate, save. Read it top to bottom."""

import math
import time
from collections.abc import Callable

import torch

from weitiao.core.batch import Batch
from weitiao.core.errors import STOPPED_BY_GUARD, Interrupted, WeitiaoError
from weitiao.core.machine import command
from weitiao.core.objective import Objective
from weitiao.core.registry import find_module
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.tunable import TunableModel
from weitiao.train.distributed import Machines
from weitiao.train.keep import save_or_say, validate
from weitiao.train.plan import Plan
from weitiao.train.state import State
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
) -> State:
    """Take optimizer steps until plan.steps, or until validation has nothing better to say, or until stopped.

    Args:
        loader: i -> the micro-batches of step i on this machine.
        score: measures the model as it is now, on held-out rows.

    Raises:
        Interrupted: a signal came; the state is saved.
        WeitiaoError: the loss or the gradient is not finite; nothing was touched by that step.
    """
    settings, weights = plan.settings, list(model.trainable().values())
    take, patience = find_module("step", plan.step).take, settings.patience or math.inf
    model.model.train()
    while state.step < plan.steps and state.stale < patience:
        started = time.perf_counter()
        window = [objective.explore(model, batch.to(model.device)) for batch in loader(state.position)]
        taken = take(model, objective, window, machines)
        norm = float(torch.nn.utils.clip_grad_norm_(weights, settings.clip or math.inf))
        if not (math.isfinite(taken.loss) and math.isfinite(norm)):
            state.optimizer.zero_grad()
            raise _not_finite(run, state, taken.loss, norm, window)
        rate = state.rate * plan.rate_at(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group.get("rate", 1.0)
        state.optimizer.step()
        if model.attachment.after_step is not None:
            model.attachment.after_step(state.step)
        state.optimizer.zero_grad()
        state.step += 1
        state.position += 1
        facts = {"loss": taken.loss, "grad_norm": norm, "learning_rate": rate, **taken.notes}
        spent = round(time.perf_counter() - started, 4)
        run.note("step", step=state.step, **facts, tokens=taken.tokens, supervised=taken.supervised, seconds=spent)

        last = state.step == plan.steps
        if last or (plan.evaluate_every and state.step % plan.evaluate_every == 0):
            validate(model, state, settings, run, score)
            model.model.train()
        asked, last = machines.any(bool(stop.asked)), last or state.stale >= patience
        if asked or last or (plan.save_every and state.step % plan.save_every == 0):
            save_or_say(run, state, plan, machines)
        if asked and not last:
            run.note("interrupted", step=state.step)
            go_on = f"{command()} train --resume {run.folder}"
            raise Interrupted(f"stopped at step {state.step}; go on with: {go_on}", stop.asked)
    if state.step < plan.steps:
        run.note("early_stop", step=state.step, best_step=state.best_step)
    model.model.eval()
    return state


def _not_finite(run: Run, state: State, loss: float, norm: float, window: list[Batch]) -> WeitiaoError:
    rows = [row for batch in window for row in batch.source]
    run.note("not_finite", step=state.step + 1, loss=str(loss), grad_norm=str(norm), rows=rows)
    trouble = WeitiaoError(
        f"step {state.step + 1}: the loss is {loss}, the gradient {norm}: not finite. Nothing was touched by this step; "
        f"the rows are in {run.folder}/journal.jsonl. A lower train.learning_rate is the usual cure."
    )
    trouble.exit_code = STOPPED_BY_GUARD
    return trouble
