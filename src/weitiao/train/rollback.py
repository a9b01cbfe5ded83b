"""What is done about a step that is not sound: put its rows aside, ask accepted rows again, go back to a healthy state.

Going back is resuming, but for what must not be undone: the place in the data (the bad stretch is stepped over), the
lowered rate, the count of returns, and the best result so far.

    states   ... 40 .... 60 .... 80 .x          x: astray, noticed after step 85
    back to          60, the data go on from behind x, states after 60 are removed
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from weitiao.core import events
from weitiao.core.batch import Batch
from weitiao.core.errors import STOPPED_BY_GUARD, WeitiaoError
from weitiao.core.messages import Message
from weitiao.core.objective import LossFunction
from weitiao.core.run import Run
from weitiao.core.run_status import now
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.train.checkpoints import checkpoint
from weitiao.train.checkpoints.async_saver import Saver
from weitiao.train.checkpoints.best import save_best
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.settings import Plan
from weitiao.train.stability.guard import RETURNS, Verdict
from weitiao.train.step import StepResult, count_targets

NAMED = 5  # tensors in a complaint
LOWERED = 0.5  # the rate's factor from the second return on


@dataclass
class Rollback:
    """All that is needed to act on a verdict."""

    model: TrainableModel
    objective: LossFunction
    loader: Callable[[int], list[Batch]]
    state: State
    plan: Plan
    run: Run
    distributed: Distributed
    saver: Saver
    describe_row: Callable[[int], dict[str, Any]]
    """A row's number -> where it stands, and its text."""

    def judge(self, taken: StepResult, norm: float) -> Verdict:
        """The guard's word on this step, while its gradients are there.

        Raises:
            WeitiaoError: the guard is off, and the step is not finite.
        """
        state = self.state
        if not self.plan.guarded:
            if math.isfinite(taken.loss) and math.isfinite(norm):
                return Verdict("take")
            raise self._stop(
                Message("the loss is {loss}, the gradient norm {norm}, and the guard is off", loss=taken.loss, norm=norm),
                state.step,
            )
        verdict = state.guard.judge(state.step + 1, state.position, taken.loss, norm, taken.tasks)
        if not math.isfinite(norm):
            odd = [n for n, p in self.model.trainable().items() if p.grad is not None and not p.grad.isfinite().all()]
            if odd:
                reason = Message("{reason} (in {tensors})", reason=verdict.reason, tensors=", ".join(odd[:NAMED]))
                verdict = replace(verdict, reason=reason)
        return state.guard.answer(self._ask_again()) if verdict.action == "ask" else verdict

    def act(self, verdict: Verdict, taken: StepResult, norm: float, window: Sequence[Batch]) -> None:
        """Skip the step, or go back; the gradients are dropped already, `state.position` is behind the window.

        Raises:
            WeitiaoError: this would be the third return, or there is no healthy state.
        """
        state = self.state
        rows = self.distributed.all_gather(self._suspects(window))
        if self.run.can_write:
            here = {"step": state.step + 1, "data_step": state.position, "reason": verdict.reason.as_json()}
            figures = {"loss": _plain(taken.loss), "grad_norm": _plain(norm)}
            earlier = self.run.read("suspects.jsonl")
            self.run.write("suspects.jsonl", [*earlier, *({**here, **figures, **row} for row in rows)])
        numbers = tuple(row["row"] for row in rows)
        self.run.log(events.Skip(state.step + 1, state.position, taken.loss, norm, verdict.reason, numbers))
        if verdict.action == "back":
            self.go_back(verdict.reason)

    def go_back(self, reason: Message) -> None:
        """Become the newest healthy state, behind the bad stretch of the data."""
        state, run = self.state, self.run
        self.saver.finish()
        self.distributed.barrier()  # until the first machine has written all
        left, place = state.step, next((x for x in self.saver.healthy() if not checkpoint.broken(x)), None)
        returns = [*state.guard.returns, state.position]
        if len(returns) > RETURNS or place is None:
            if place is None:
                raise self._stop(Message("{reason}; no checkpoint is healthy", reason=reason), left)
            checkpoint.load(place, state)
            number = len(returns)
            raise self._stop(Message("{reason}; it would be rollback number {number}", reason=reason, number=number), left)
        preserved = {key: getattr(state, key) for key in ("position", "rate", "best", "best_step")}
        if len(returns) == RETURNS:
            preserved["rate"] *= LOWERED
        checkpoint.load(place, state)
        for key, value in preserved.items():
            setattr(state, key, value)
        state.guard.returns, state.guard.healthy = returns, checkpoint.step_of(place)
        self.distributed.barrier()  # until all have read it
        if self.distributed.is_main:
            checkpoint.forget_after(place)
            self.saver.save()
        run.log(events.Rollback(state.step, state.position, left, state.rate, reason))

    def _ask_again(self) -> float:
        """What the loss of a window is now that was accepted some steps ago."""
        window = [batch.to(self.model.device) for batch in self.loader(self.state.guard.sound_position)]
        sums: dict[str, float] = {}
        with evaluating(self.model), torch.no_grad():
            for batch in window:
                for task, total in self.objective.task_losses(self.model, batch).items():
                    sums[task] = sums.get(task, 0.0) + total
        sums, counts = self.distributed.all_reduce(sums), self.distributed.all_reduce(count_targets(self.objective, window))
        return sum(sums[task] / many for task, many in counts.items() if many)

    def _row_losses(self, batch: Batch) -> list[tuple[float, float]]:
        with evaluating(self.model), torch.no_grad():
            return self.objective.segment_losses(self.model, batch)

    def _suspects(self, window: Sequence[Batch]) -> list[dict[str, Any]]:
        """The rows of a window, the worst first, each with its own loss."""
        found = []
        for batch in window:
            for row, (total, many) in zip(batch.row_ids, self._row_losses(batch)):
                found.append({"row": row, "row_loss": _plain(total / max(many, 1.0)), **self.describe_row(row)})
        return sorted(found, key=lambda x: -math.inf if isinstance(x["row_loss"], str) else -x["row_loss"])

    def _stop(self, reason: Message, step: int) -> WeitiaoError:
        """The run ends here; what was sound stays the result."""
        run, state = self.run, self.state
        if state.best is None:  # nothing is held out: the last healthy state is the result
            save_best(run, self.model, state)
        run.log(events.End("stopped", step, state.position, now(), reason))
        facts = {"step": step, "reason": reason, "folder": run.folder}
        if (run.folder / "suspects.jsonl").exists():  # with the guard off no rows are named
            error = WeitiaoError(
                "stopped at step {step}: {reason}. The result is the last sound checkpoint, in {folder}; the rows are in "
                "{folder}/suspects.jsonl. A lower train.learning_rate is the usual cure.",
                **facts,
            )
        else:
            error = WeitiaoError(
                "stopped at step {step}: {reason}. The result is the last sound checkpoint, in {folder}. "
                "A lower train.learning_rate is the usual cure.",
                **facts,
            )
        error.exit_code = STOPPED_BY_GUARD
        return error


def _plain(value: float) -> float | str:
    """JSON knows no Inf and no NaN."""
    return value if math.isfinite(value) else str(value)
