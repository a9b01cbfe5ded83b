"""Guard: judges each step after its gradients are computed and before any weight moves.

    not finite     the loss or the gradient norm is Inf or NaN                   -> skip; no weight is touched
    outlier        far above the values accepted recently: the gradient norm (> 6 spreads and > 4 medians), or the loss
                   (> 6 spreads and > 2 medians), and 2.5 times as far above its median as any accepted step was above
                   its own (older steps count less)                              -> skip; at the fifth in a row, recheck
    diverged       the average loss is 25 % above its lowest for 5 steps; or, rechecked, rows that were accepted 20 steps
                   before are 25 % worse; or non-finite steps are frequent       -> roll back to a verified checkpoint
    verified       20 accepted steps followed it, and the loss is not rising: the losses since the lowest average are not
                   above half of the allowed rise

Medians are over the newest 32 accepted steps. A spread is the median difference of neighbors (x 1.4826 / sqrt 2) over the
newest 128: a falling loss does not widen it, and one skipped spike does not hide the next. With few rows per step, most of
them trained on already, median and spread are near zero, and each row that is still wrong is thousands of spreads above
them. That is no fault; the peaks (how far accepted steps rose above their medians) and the spread of the average account
for such rows. A loss below twice the median never skips a step, because hard domains are no faults either. All of the
guard's statistics are fields here and saved in the State.

With several tasks, a step is compared with steps that have rows of the same tasks: one more task changes the loss and the
gradient norm, and that is no fault. Each set of tasks has statistics of its own (`other_tasks`), with a warm-up of its own.
"""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from weitiao.core.messages import Message

Action = Literal["accept", "skip", "recheck", "roll_back"]

MEDIAN_WINDOW = 32  # accepted steps in a median; also the warm-up, in which nothing counts as an outlier
SPREAD_WINDOW = 128  # accepted steps in a spread
AVERAGE_HISTORY = 160  # accepted steps whose averages are compared with the current one
SPREADS, LOSS_MEDIANS, NORM_MEDIANS = 6.0, 2.0, 4.0
PEAK_FACTOR, PEAK_DECAY = 2.5, 0.999  # multiple of the largest accepted rise above a median; its decay per step
MIN_LOSS_SPREAD, MIN_NORM_SPREAD = 0.02, 0.05  # lower bounds: as a fraction of the initial loss; of the log norm
EMA_WEIGHT = 0.1  # weight of the newest loss in the average
DIVERGED, DIVERGED_SPREADS, DIVERGED_STEPS = 1.25, 3.0, 5  # times the lowest average, spreads above it, for this long
AVERAGE_SPREADS = 8.0 * math.sqrt(EMA_WEIGHT / (2 - EMA_WEIGHT))  # the same in spreads of the average, tails included
NON_FINITE_IN_A_ROW = 3  # non-finite steps in a row that mean a rollback
NON_FINITE_ALLOWED, NON_FINITE_WINDOW = 4, 200  # more of them among the newest steps mean a rollback
RECHECK_AFTER = 5  # outliers in a row after which accepted rows are rechecked
NEW_REGIME = 20  # outliers in a row that become the new normal, if the rechecked rows are as good as before
VERIFY_STEPS = 20  # accepted steps in a row that verify an older checkpoint
MAX_ROLLBACKS = 2  # the next one stops the run
TASK_STATISTICS = (  # the fields that each set of tasks has values of its own for
    "losses", "log_norms", "loss_peak", "norm_peak", "averages", "initial_loss", "steps_above", "outliers",
    "recent_windows", "reference_window", "reference_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What to do with a step, and why."""

    action: Action
    reason: Message = Message("")


@dataclass
class Guard:
    """The guard's statistics. `judge` is called once per step, with values that are the same in all processes."""

    tasks: str = ""
    """The set of tasks that the statistics below belong to."""
    other_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The statistics of other sets of tasks."""
    losses: list[float] = field(default_factory=list)
    """Of the newest accepted steps."""
    log_norms: list[float] = field(default_factory=list)
    """Logarithms of their gradient norms."""
    loss_peak: float = 0.0
    """The largest rise of an accepted loss above the median before it; it decays."""
    norm_peak: float = 0.0
    """The same of the gradient norms."""
    averages: list[float] = field(default_factory=list)
    """After each accepted step: the exponential moving average of the accepted losses."""
    initial_loss: float = 0.0
    """Absolute median loss after the warm-up: differences far below it raise no alarm."""
    steps_above: int = 0
    """Accepted steps in a row with an average above the allowed rise."""
    outliers: int = 0
    """In a row."""
    non_finite: list[int] = field(default_factory=list)
    """1 for each of the newest steps that was not finite, else 0."""
    accepted: int = 0
    """In a row."""
    verified_step: int = 0
    """Checkpoints up to this step are verified: enough accepted steps followed them."""
    recent_windows: list[int] = field(default_factory=list)
    """Data steps of the newest accepted windows."""
    reference_window: int = -1
    """Data step of the window to recheck: accepted 20 steps ago, since the newest may already be affected."""
    reference_loss: float = 0.0
    """Its loss when it was accepted."""
    rollbacks: list[int] = field(default_factory=list)
    """Data steps at which the run was rolled back."""

    def judge(self, step: int, data_step: int, loss: float, norm: float, tasks: str = "") -> Verdict:
        """Judge the step that would be number `step` (from 1), computed from the window at `data_step`.

        Args:
            norm: L2 norm of the gradient.
            tasks: which of several tasks the window has rows of.
        """
        self._select_statistics(tasks)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._not_finite(loss)
        self.non_finite = [*self.non_finite, 0][-NON_FINITE_WINDOW:]
        reason = self._outlier(loss, norm)
        if reason and self.outliers < NEW_REGIME:
            self.outliers += 1
            self.accepted = 0
            return Verdict("skip" if self.outliers % RECHECK_AFTER else "recheck", reason)
        if reason:  # every recheck found the old rows as good as before: the data has changed, the model is not at fault
            self.losses, self.log_norms, self.averages, self.steps_above, self.recent_windows = [], [], [], 0, []
        self.outliers = 0
        return self._accept(step, data_step, loss, norm)

    def judge_recheck(self, loss: float) -> Verdict:
        """The verdict after "recheck".

        Args:
            loss: the current loss of the window at `reference_window`.
        """
        allowed = max((DIVERGED - 1) * abs(self.reference_loss), DIVERGED_SPREADS * MIN_LOSS_SPREAD * self.initial_loss)
        if math.isfinite(loss) and loss - self.reference_loss <= allowed:
            return Verdict("skip", Message("rows accepted before have the same loss as before: these rows are the outlier"))
        reason = Message(
            "rows accepted before at loss {before:.3g} now have {after:.3g}", before=self.reference_loss, after=loss
        )
        return Verdict("roll_back", reason)

    def _select_statistics(self, tasks: str) -> None:
        """Store the statistics of the last step's tasks and load those of these tasks, new ones at first."""
        if tasks == self.tasks:
            return
        if self.losses:
            self.other_tasks[self.tasks] = {name: getattr(self, name) for name in TASK_STATISTICS}
        new = Guard()
        statistics = self.other_tasks.pop(tasks, {name: getattr(new, name) for name in TASK_STATISTICS})
        for name, value in statistics.items():
            setattr(self, name, value)
        self.tasks = tasks

    def _not_finite(self, loss: float) -> Verdict:
        self.accepted = 0
        self.non_finite = [*self.non_finite, 1][-NON_FINITE_WINDOW:]
        if sum(self.non_finite[-NON_FINITE_IN_A_ROW:]) == NON_FINITE_IN_A_ROW:
            reason = Message("the loss or the gradient was not finite {count} times in a row", count=NON_FINITE_IN_A_ROW)
            return Verdict("roll_back", reason)
        if sum(self.non_finite) > NON_FINITE_ALLOWED:
            reason = Message(
                "the loss or the gradient was not finite {count} times in {steps} steps",
                count=sum(self.non_finite),
                steps=len(self.non_finite),
            )
            return Verdict("roll_back", reason)
        return Verdict("skip", Message("the gradient is not finite" if math.isfinite(loss) else "the loss is not finite"))

    def _outlier(self, loss: float, norm: float) -> Message:
        """Why the step is an outlier; an empty message if it is none.

        Two conditions must both hold. The first compares with what is usual: a multiple of the median (a step of twice
        the usual loss is worth a look, however small the spread) and a multiple of the spread (a noisy run is no fault,
        however far its steps are from the median). The second compares with the worst that was accepted: in a run where
        nearly all rows are fitted, median and spread are near zero and say nothing about rows that are still wrong.
        """
        if len(self.losses) < MEDIAN_WINDOW:
            return Message("")
        middle, spread = median(self.losses[-MEDIAN_WINDOW:]), _spread(self.losses)
        # abs(), because losses can be negative (rewards, log-likelihoods)
        min_spread = MIN_LOSS_SPREAD * max(abs(middle), self.initial_loss)
        limit = max((LOSS_MEDIANS - 1) * abs(middle), SPREADS * max(spread, min_spread))
        if loss - middle > max(limit, PEAK_FACTOR * self.loss_peak):
            return Message("the loss is {loss:.3g}, its median {median:.3g}", loss=loss, median=middle)
        # norms are compared by their logarithms: they vary by factors, and shrink or grow by factors during training
        middle, spread = median(self.log_norms[-MEDIAN_WINDOW:]), _spread(self.log_norms)
        limit = max(math.log(NORM_MEDIANS), SPREADS * max(spread, MIN_NORM_SPREAD))
        if _log(norm) - middle > limit and norm - math.exp(middle) > PEAK_FACTOR * self.norm_peak:
            return Message("the gradient norm is {norm:.3g}, its median {median:.3g}", norm=norm, median=math.exp(middle))
        return Message("")

    def _accept(self, step: int, data_step: int, loss: float, norm: float) -> Verdict:
        average = (1 - EMA_WEIGHT) * self.averages[-1] + EMA_WEIGHT * loss if self.averages else loss
        if self.losses:
            norm_rise = norm - math.exp(median(self.log_norms[-MEDIAN_WINDOW:]))
            self.loss_peak = max(loss - median(self.losses[-MEDIAN_WINDOW:]), PEAK_DECAY * self.loss_peak)
            self.norm_peak = max(norm_rise, PEAK_DECAY * self.norm_peak)
        self.losses = [*self.losses, loss][-SPREAD_WINDOW:]
        self.log_norms = [*self.log_norms, _log(norm)][-SPREAD_WINDOW:]
        self.averages = [*self.averages, average][-AVERAGE_HISTORY:]
        if len(self.losses) == MEDIAN_WINDOW and not self.initial_loss:
            self.initial_loss = abs(median(self.losses))
        is_rising = False
        if len(self.averages) >= MEDIAN_WINDOW:
            lowest = min(self.averages)
            spread = max(_spread(self.losses), MIN_LOSS_SPREAD * self.initial_loss)
            allowed = max(
                (DIVERGED - 1) * abs(lowest), DIVERGED_SPREADS * spread, AVERAGE_SPREADS * _rms_spread(self.losses)
            )
            since = len(self.averages) - 1 - self.averages.index(lowest)
            is_rising = _stays_above(self.losses[-since:] if since else [], lowest + allowed / 2)
            self.steps_above = self.steps_above + 1 if average - lowest > allowed else 0
            if self.steps_above >= DIVERGED_STEPS:
                reason = Message(
                    "the average loss has risen from {lowest:.3g} to {average:.3g}", lowest=lowest, average=average
                )
                return Verdict("roll_back", reason)
        self.recent_windows = [*self.recent_windows, data_step][-VERIFY_STEPS:]
        self.reference_window = self.recent_windows[0]
        self.reference_loss = self.losses[-min(len(self.recent_windows), len(self.losses))]
        self.accepted += 1
        if self.accepted >= VERIFY_STEPS and not is_rising:
            self.verified_step = max(self.verified_step, step - VERIFY_STEPS)
        return Verdict("accept")


def _spread(values: list[float]) -> float:
    """The standard deviation about the trend, robust: from the median difference of neighbors.

    Differences of neighbors cancel a slow trend. 1.4826 turns a median absolute deviation into a standard deviation of a
    normal distribution; sqrt 2, because a difference of two values varies that much more than one value.
    """
    return 1.4826 * median(abs(a - b) for a, b in zip(values, values[1:])) / math.sqrt(2)


def _rms_spread(values: list[float]) -> float:
    """The same as a root mean square, in which rare far values count in full."""
    return math.sqrt(sum((a - b) * (a - b) for a, b in zip(values, values[1:])) / (2 * (len(values) - 1)))


def _stays_above(losses: list[float], level: float) -> bool:
    """Whether the newest losses together are above the level: a cumulative sum (Page 1954) that is above zero.

    It reacts at once, where the average takes many steps to rise.
    """
    total = 0.0
    for loss in losses:
        total = max(0.0, total + loss - level)
    return total > 0


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
