"""Guard: is this step sound? Judged after the gradients are there and before anything moves.

    not finite     the loss or the gradient is Inf or NaN                        -> skip; nothing is touched
    outlier        far above what was accepted lately: the gradient (> 6 spreads and > 4 medians), or the loss
                   (> 6 spreads and > 2 medians), and 2.5 times as far above its median as any accepted step was
                   above its own, long ago counting less                         -> skip; at the fifth in a row, ask
    astray         the average loss lies 25 % above its lowest for 5 steps; or asked again, rows that were accepted
                   20 steps before have become 25 % worse; or non-finite steps pile up    -> go back to a healthy state
    healthy        20 sound steps followed, and no rise is under way: losses since the lowest average do not lie above
                   half of what is allowed

Medians are of the newest 32 accepted steps, spreads the median difference of neighbours (x 1.4826 / sqrt 2) in the
newest 128: a falling loss widens neither, and one skipped spike hides no other. Few rows a step, most of them learnt:
medians and spreads are then near nought, and each row that is still wrong lies thousands of spreads above them. Such
rows are no fault, and the peaks (how far accepted steps rose above their medians) and the average's own spread know it.
Losses alone never skip a step below twice the median, for hard domains are no faults. All of the guard's memory is
here, and is saved in the State.

With several tasks a step is held against steps with rows of the same tasks: one task more is another loss and a longer
gradient, and no fault. Each set of tasks has a memory of its own (`kept`), which first learns what is usual.
"""

import math
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from weitiao.core.messages import Message

Action = Literal["take", "skip", "ask", "back"]

LEARNING = 32  # accepted steps that medians are of; before them no outlier is looked for
WINDOW = 128  # accepted steps that spreads are measured over
PAST = 160  # accepted steps that the average is held against
SPREADS, LOSS_MEDIANS, NORM_MEDIANS = 6.0, 2.0, 4.0
TAIL, FADING = 2.5, 0.999  # times the farthest rise of an accepted step above its median; what is left of it a step later
LOSS_FLOOR, NORM_FLOOR = 0.02, 0.05  # least spreads: of what the loss was at first; of the log norm
SMOOTH = 0.1  # the newest loss's weight in the average
ASTRAY, ASTRAY_SPREADS, ABOVE = 1.25, 3.0, 5  # times the lowest average, and spreads above it, for so many steps
AVERAGE_SPREADS = 8.0 * math.sqrt(SMOOTH / (2 - SMOOTH))  # the same in spreads of the average, tails included
IN_A_ROW = 3  # non-finite steps that mean a return
ASK = 5  # outliers in a row after which accepted rows are asked again
REGIME = 20  # outliers in a row that are the new normal, when accepted rows are as good as before
FEW_IN = (4, 200)  # more non-finite steps than this among the newest so many mean a return
PROVEN = 20  # sound steps in a row that prove an older state healthy
RETURNS = 2  # the next one is a stop
OF_TASKS = (  # what is remembered of each set of tasks
    "losses", "norms", "loss_peak", "norm_peak", "averages", "scale", "above", "outliers", "places", "sound_position",
    "sound_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What to do with a step, and why."""

    action: Action
    reason: Message = Message("")


@dataclass
class Guard:
    """Its memory. `judge` is called once a step, with figures that are the same on all machines."""

    tasks: str = ""
    """Which tasks the memory below is of."""
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The memories of other sets of tasks."""
    losses: list[float] = field(default_factory=list)
    """Of the newest accepted steps."""
    norms: list[float] = field(default_factory=list)
    """Logarithms of their gradients' lengths."""
    loss_peak: float = 0.0
    """How far an accepted loss rose above the median before it, at most; it fades."""
    norm_peak: float = 0.0
    """The same of the gradients' lengths."""
    averages: list[float] = field(default_factory=list)
    """After each of these steps: the average of accepted losses, the newest weighing a tenth."""
    scale: float = 0.0
    """What the loss was at first: differences far below it are no alarm."""
    above: int = 0
    """Accepted steps in a row whose average lay too high."""
    outliers: int = 0
    """In a row."""
    broken: list[int] = field(default_factory=list)
    """Of the newest steps, which were not finite."""
    sound: int = 0
    """Accepted in a row."""
    healthy: int = 0
    """States up to this step are proven: sound steps followed them."""
    places: list[int] = field(default_factory=list)
    """Of the newest accepted windows in the data."""
    sound_position: int = -1
    """The place of one that was accepted 20 steps ago: what is accepted last may be in trouble already ..."""
    sound_loss: float = 0.0
    """... and what its loss was."""
    returns: list[int] = field(default_factory=list)
    """The positions at which the run went back."""

    def judge(self, step: int, position: int, loss: float, norm: float, tasks: str = "") -> Verdict:
        """Judge the step that would be number `step` (from 1), made of the window at `position`.

        Args:
            tasks: which of several tasks the window has rows of.
        """
        self._remember(tasks)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return self._not_finite(loss, norm)
        self.broken = [*self.broken, 0][-FEW_IN[1] :]
        reason = self._outlier(loss, norm)
        if reason and self.outliers < REGIME:
            self.outliers += 1
            self.sound = 0
            return Verdict("skip" if self.outliers % ASK else "ask", reason)
        if reason:  # rows that were accepted before are as good as ever: these are other rows, not a fault
            self.losses, self.norms, self.averages, self.above, self.places = [], [], [], 0, []
        self.outliers = 0
        return self._accept(step, position, loss, norm)

    def _remember(self, tasks: str) -> None:
        """Take up the memory of these tasks."""
        if tasks != self.tasks:
            fresh = Guard()
            if self.losses:
                self.kept[self.tasks] = {key: getattr(self, key) for key in OF_TASKS}
            there = self.kept.pop(tasks, {key: getattr(fresh, key) for key in OF_TASKS})
            for key, value in there.items():
                setattr(self, key, value)
            self.tasks = tasks

    def answer(self, again: float) -> Verdict:
        """After "ask": what the loss of the window at `sound_position` is now."""
        allowed = max((ASTRAY - 1) * abs(self.sound_loss), ASTRAY_SPREADS * LOSS_FLOOR * self.scale)
        if math.isfinite(again) and again - self.sound_loss <= allowed:
            return Verdict("skip", Message("rows accepted before are as good as ever, so the fault is in these rows"))
        return Verdict(
            "back",
            Message("rows accepted before at loss {before:.3g} now have {after:.3g}", before=self.sound_loss, after=again),
        )

    def _not_finite(self, loss: float, norm: float) -> Verdict:
        self.sound = 0
        self.broken = [*self.broken, 1][-FEW_IN[1] :]
        reason = Message("the gradient is not finite" if math.isfinite(loss) else "the loss is not finite")
        if sum(self.broken[-IN_A_ROW:]) == IN_A_ROW:
            return Verdict("back", Message("{reason}, {n} times in a row", reason=reason, n=IN_A_ROW))
        if sum(self.broken) > FEW_IN[0]:
            return Verdict(
                "back",
                Message("{reason}, {n} times in {steps} steps", reason=reason, n=sum(self.broken), steps=len(self.broken)),
            )
        return Verdict("skip", reason)

    def _outlier(self, loss: float, norm: float) -> Message | None:
        if len(self.losses) < LEARNING:
            return None
        middle, spread = median(self.losses[-LEARNING:]), _noise(self.losses)
        far = max((LOSS_MEDIANS - 1) * abs(middle), SPREADS * max(spread, LOSS_FLOOR * max(abs(middle), self.scale)))
        if loss - middle > max(far, TAIL * self.loss_peak):
            return Message("the loss is {loss:.3g}, its median {median:.3g}", loss=loss, median=middle)
        middle, spread = median(self.norms[-LEARNING:]), _noise(self.norms)
        far = max(math.log(NORM_MEDIANS), SPREADS * max(spread, NORM_FLOOR))
        if _log(norm) - middle > far and norm - math.exp(middle) > TAIL * self.norm_peak:
            return Message("the gradient norm is {norm:.3g}, its median {median:.3g}", norm=norm, median=math.exp(middle))
        return None

    def _accept(self, step: int, position: int, loss: float, norm: float) -> Verdict:
        average = (1 - SMOOTH) * self.averages[-1] + SMOOTH * loss if self.averages else loss
        if self.losses:
            rise = norm - math.exp(median(self.norms[-LEARNING:]))
            self.loss_peak = max(loss - median(self.losses[-LEARNING:]), FADING * self.loss_peak)
            self.norm_peak = max(rise, FADING * self.norm_peak)
        self.losses = [*self.losses, loss][-WINDOW:]
        self.norms = [*self.norms, _log(norm)][-WINDOW:]
        self.averages = [*self.averages, average][-PAST:]
        if len(self.losses) == LEARNING and not self.scale:
            self.scale = abs(median(self.losses))
        rising = False
        if len(self.averages) >= LEARNING:
            lowest = min(self.averages)
            noise = max(_noise(self.losses), LOSS_FLOOR * self.scale)
            allowed = max((ASTRAY - 1) * abs(lowest), ASTRAY_SPREADS * noise, AVERAGE_SPREADS * _with_tails(self.losses))
            since = len(self.averages) - 1 - self.averages.index(lowest)
            rising = _above(self.losses[-since:] if since else [], lowest + allowed / 2)
            self.above = self.above + 1 if average - lowest > allowed else 0
            if self.above >= ABOVE:
                return Verdict(
                    "back",
                    Message(
                        "the average loss has risen from {lowest:.3g} to {average:.3g}", lowest=lowest, average=average
                    ),
                )
        self.places = [*self.places, position][-PROVEN:]
        self.sound_position, self.sound_loss = self.places[0], self.losses[-min(len(self.places), len(self.losses))]
        self.sound += 1
        if self.sound >= PROVEN and not rising:
            self.healthy = max(self.healthy, step - PROVEN)
        return Verdict("take")


def _noise(values: list[float]) -> float:
    """The spread about the trend: of the differences of neighbours, over the root of two."""
    return 1.4826 * median(abs(a - b) for a, b in zip(values, values[1:])) / math.sqrt(2)


def _above(losses: list[float], level: float) -> bool:
    """Whether the newest of them lie above the level together: a cumulative sum (Page 1954) that has left nought. It says
    so at once, where the average takes many steps to rise."""
    total = 0.0
    for loss in losses:
        total = max(0.0, total + loss - level)
    return total > 0


def _with_tails(values: list[float]) -> float:
    """The same as a root mean square, in which rare far values count in full."""
    return math.sqrt(sum((a - b) * (a - b) for a, b in zip(values, values[1:])) / (2 * (len(values) - 1)))


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))
