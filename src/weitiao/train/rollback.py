"""Acting on the guard's verdict: skip a step, recheck accepted rows, or roll back to a verified checkpoint.

A rollback is a resume, except for what must not be undone: the position in the data (the bad batches are skipped), the
lowered learning rate, the number of rollbacks, and the best result so far.

    checkpoints  ... 40 .... 60 .... 80 .x      x: training has diverged, noticed after step 85
    back to          60, the data continues after x, checkpoints after 60 are removed
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
from weitiao.train.stability.guard import MAX_ROLLBACKS, Verdict
from weitiao.train.step import StepResult, count_targets

MAX_NAMES = 5  # tensors named in a message
LR_FACTOR = 0.5  # on the learning rate, from the last allowed rollback on
PRESERVED = ("data_step", "lr_factor", "best_score", "best_step")  # of the State, by a rollback


@dataclass
class Rollback:
    """Everything needed to act on a verdict."""

    model: TrainableModel
    objective: LossFunction
    loader: Callable[[int], list[Batch]]
    state: State
    plan: Plan
    run: Run
    distributed: Distributed
    saver: Saver
    describe_row: Callable[[int], dict[str, Any]]
    """A row's number -> its file, line and text."""

    def judge(self, result: StepResult, norm: float) -> Verdict:
        """The guard's verdict on this step, while its gradients are still there.

        Raises:
            WeitiaoError: the guard is off, and the step is not finite.
        """
        state = self.state
        if not self.plan.is_guarded:
            if math.isfinite(result.loss) and math.isfinite(norm):
                return Verdict("accept")
            reason = Message(
                "the loss is {loss}, the gradient norm {norm}, and the guard is off", loss=result.loss, norm=norm
            )
            raise self._stop(reason, state.step)
        verdict = state.guard.judge(state.step + 1, state.data_step, result.loss, norm, result.tasks)
        if not math.isfinite(norm):
            weights = self.model.trainable()
            names = [n for n, p in weights.items() if p.grad is not None and not p.grad.isfinite().all()]
            if names:
                reason = Message("{reason} (in {tensors})", reason=verdict.reason, tensors=", ".join(names[:MAX_NAMES]))
                verdict = replace(verdict, reason=reason)
        return state.guard.judge_recheck(self._reference_loss()) if verdict.action == "recheck" else verdict

    def skip_or_roll_back(self, verdict: Verdict, result: StepResult, norm: float, window: Sequence[Batch]) -> None:
        """Skip the step, or roll back. The gradients are cleared already, and `state.data_step` is after the window.

        Raises:
            WeitiaoError: there were too many rollbacks already, or there is no verified checkpoint.
        """
        state = self.state
        rows = self.distributed.all_gather(self._suspects(window))
        if self.run.can_write:
            shared = {"step": state.step + 1, "data_step": state.data_step, "reason": verdict.reason.as_json()}
            shared |= {"loss": _plain(result.loss), "grad_norm": _plain(norm)}
            earlier = self.run.read("suspects.jsonl")
            self.run.write("suspects.jsonl", [*earlier, *({**shared, **row} for row in rows)])
        row_ids = tuple(row["row"] for row in rows)
        self.run.log(events.Skip(state.step + 1, state.data_step, result.loss, norm, verdict.reason, row_ids))
        if verdict.action == "roll_back":
            self.roll_back(verdict.reason)

    def roll_back(self, reason: Message) -> None:
        """Load the newest verified checkpoint, but continue after the bad batches.

        Raises:
            WeitiaoError: there were too many rollbacks already, or there is no verified checkpoint.
        """
        state, run = self.state, self.run
        self.saver.wait()
        self.distributed.barrier()  # until the main process has written everything
        from_step = state.step
        path = next((x for x in self.saver.verified() if not checkpoint.find_damage(x)), None)
        rollbacks = [*state.guard.rollbacks, state.data_step]
        if path is None:
            raise self._stop(Message("{reason}; there is no verified checkpoint", reason=reason), from_step)
        if len(rollbacks) > MAX_ROLLBACKS:
            checkpoint.load(path, state)
            reason = Message("{reason}; it would be rollback number {number}", reason=reason, number=len(rollbacks))
            raise self._stop(reason, from_step)
        preserved = {name: getattr(state, name) for name in PRESERVED}
        if len(rollbacks) == MAX_ROLLBACKS:
            preserved["lr_factor"] *= LR_FACTOR
        checkpoint.load(path, state)
        for name, value in preserved.items():
            setattr(state, name, value)
        state.guard.rollbacks, state.guard.verified_step = rollbacks, checkpoint.step_of(path)
        self.distributed.barrier()  # until all processes have read it
        if self.distributed.is_main:
            checkpoint.remove_newer(path)
            self.saver.save()
        run.log(events.Rollback(state.step, state.data_step, from_step, state.lr_factor, reason))

    def _reference_loss(self) -> float:
        """The current loss of the window that the guard wants to recheck."""
        window = [batch.to(self.model.device) for batch in self.loader(self.state.guard.reference_window)]
        sums: dict[str, float] = {}
        with evaluating(self.model), torch.no_grad():
            for batch in window:
                for task, total in self.objective.task_losses(self.model, batch).items():
                    sums[task] = sums.get(task, 0.0) + total
        sums, counts = self.distributed.all_reduce(sums), self.distributed.all_reduce(count_targets(self.objective, window))
        return sum(sums[task] / count for task, count in counts.items() if count)

    def _row_losses(self, batch: Batch) -> list[tuple[float, float]]:
        with evaluating(self.model), torch.no_grad():
            return self.objective.segment_losses(self.model, batch)

    def _suspects(self, window: Sequence[Batch]) -> list[dict[str, Any]]:
        """The rows of a window with their own losses, the highest first (those that are not finite before all others)."""
        rows = []
        for batch in window:
            for row, (total, count) in zip(batch.row_ids, self._row_losses(batch)):
                rows.append({"row": row, "row_loss": _plain(total / max(count, 1.0)), **self.describe_row(row)})
        return sorted(rows, key=lambda x: -math.inf if isinstance(x["row_loss"], str) else -x["row_loss"])

    def _stop(self, reason: Message, step: int) -> WeitiaoError:
        """End the run here, with the last accepted weights as its result; returns the error to raise."""
        run, state = self.run, self.state
        if state.best_score is None:  # nothing is held out, so there is no best: the current weights are the result
            save_best(run, self.model, state)
        run.log(events.End("stopped", step, state.data_step, now(), reason))
        if (run.folder / "suspects.jsonl").exists():  # with the guard off no rows are recorded
            error = WeitiaoError(
                "stopped at step {step}: {reason}. The result is the last sound checkpoint, in {folder}; the rows are in "
                "{folder}/suspects.jsonl. A lower train.learning_rate is the usual cure.",
                step=step,
                reason=reason,
                folder=run.folder,
            )
        else:
            error = WeitiaoError(
                "stopped at step {step}: {reason}. The result is the last sound checkpoint, in {folder}. A lower "
                "train.learning_rate is the usual cure.",
                step=step,
                reason=reason,
                folder=run.folder,
            )
        error.exit_code = STOPPED_BY_GUARD
        return error


def _plain(value: float) -> float | str:
    """For JSON, which has no Inf and no NaN."""
    return value if math.isfinite(value) else str(value)
