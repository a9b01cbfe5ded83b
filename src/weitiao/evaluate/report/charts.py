"""Drawings of a report, as SVG: loss curves, intervals, a reliability diagram, the shade of a confusion matrix's cells.

They hold no words but figures, so that one drawing serves both languages; what is shown under the mouse is in both.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from weitiao.core import events
from weitiao.core.intervals import wilson
from weitiao.core.messages import Message
from weitiao.core.score import is_percentage
from weitiao.evaluate.report.page import in_each_language

WIDTH, HEIGHT, EDGE = 720, 240, 44  # of a curve, in pixels
MAX_POINTS = 1500  # of a curve: more are thinned
BAR_WIDTH, BAR_HEIGHT = 170, 26  # of an interval
DIAGRAM, MARGIN = 260, 34  # of a reliability diagram
POINT = 10.0  # the largest radius of a bin

Pairs = Sequence[tuple[int, float]]


def loss_curve(
    steps: Sequence[events.Step],
    validations: Sequence[events.Validation],
    guarded: Sequence[events.Skip | events.Rollback] = (),
) -> Markup:
    """Training thin, its running mean thick, validation as dots, skips and rollbacks as vertical lines."""
    training = [(x.step, x.loss) for x in steps if math.isfinite(x.loss)]
    validation = [(x.step, x.loss) for x in validations if x.loss is not None and math.isfinite(x.loss)]
    if not training:
        return Markup("")
    frame = _Frame([*training, *validation], HEIGHT)
    dots = ""
    for step, loss in validation:
        title = _title(Message("step {step}: {loss:.4f}", step=step, loss=loss))
        dots += f'<circle cx="{frame.x(step):.1f}" cy="{frame.y(loss):.1f}" r="4" class="held">{title}</circle>'
    marks = ""
    for event in guarded:
        x = f"{frame.x(event.step):.1f}"
        title = _title(Message("step {step}: {reason}", step=event.step, reason=event.reason))
        marks += f'<line x1="{x}" x2="{x}" y1="10" y2="{HEIGHT - 30}" class="{events.kind_of(event)}">{title}</line>'
    lines = f'<polyline class="train" points="{frame.points(training)}"/>'
    lines += f'<polyline class="smooth" points="{frame.points(_running_mean(training))}"/>'
    return frame.drawn(lines + marks + dots, Message("loss by step"))


def small_curve(pairs: Pairs, label: Message) -> Markup:
    """One value of each step, half as wide and high."""
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    if not pairs:
        return Markup("")
    frame = _Frame(pairs, HEIGHT // 2, WIDTH // 2)
    return frame.drawn(f'<polyline class="smooth" points="{frame.points(pairs)}"/>', label)


class _Frame:
    """Where the values of a curve are drawn, with its grid."""

    def __init__(self, pairs: Pairs, height: int, width: int = WIDTH) -> None:
        values, self.height, self.width = [value for _, value in pairs], height, width
        self.low, self.last = min(values), max(step for step, _ in pairs)
        self.span = (max(values) - self.low) or 1.0

    def x(self, step: float) -> float:
        return EDGE + (self.width - EDGE - 10) * step / max(self.last, 1)

    def y(self, value: float) -> float:
        return 10 + (self.height - 40) * (1 - (value - self.low) / self.span)

    def points(self, pairs: Pairs) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in thinned(pairs))

    def drawn(self, inside: str, label: Message) -> Markup:
        grid = ""
        for i in range(5):
            y, value = 10 + (self.height - 40) * i / 4, self.low + self.span * (4 - i) / 4
            grid += f'<text x="4" y="{y + 4:.0f}">{value:.3g}</text>'
            grid += f'<line x1="{EDGE}" x2="{self.width - 10}" y1="{y:.0f}" y2="{y:.0f}" class="grid"/>'
        for i in range(5):
            step = round(self.last * i / 4)
            anchor = "end" if i == 4 else "middle" if i else "start"
            grid += f'<text x="{self.x(step):.0f}" y="{self.height - 10}" text-anchor="{anchor}">{step}</text>'
        name = html.escape(in_each_language(label))
        return Markup(f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{name}">{grid}{inside}</svg>')


def thinned(pairs: Pairs) -> Pairs:
    """At most MAX_POINTS: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(pairs) <= MAX_POINTS:
        return pairs
    size, kept = 2 * len(pairs) / MAX_POINTS, []
    for i in range(MAX_POINTS // 2):
        stretch = pairs[round(i * size) : round((i + 1) * size)]
        kept += sorted({min(stretch, key=lambda x: x[1]), max(stretch, key=lambda x: x[1])})
    return kept


def _running_mean(pairs: Pairs) -> list[tuple[int, float]]:
    """An exponential mean in which the newest loss counts a tenth."""
    mean, means = pairs[0][1], []
    for step, loss in pairs:
        mean = 0.9 * mean + 0.1 * loss
        means.append((step, mean))
    return means


def interval_bar(name: str, scores: Sequence[tuple[str, Mapping[str, Any] | None]], zero: bool = False) -> Markup:
    """Values with their intervals on one scale.

    Args:
        name: of the metric: a percentage is drawn from 0 to 100 %.
        scores: (CSS class, {value, low, high, n}) of each line, from the top.
        zero: of differences: a line at 0, and a scale that shows it.
    """
    known = [(kind, x) for kind, x in scores if x and x["n"] and x["low"] == x["low"]]
    if not known:
        return Markup("")
    low, high = min(x["low"] for _, x in known), max(x["high"] for _, x in known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    elif is_percentage(name):
        low, high = 0.0, 1.0
    edge = 0.05 * ((high - low) or 1.0)

    def x_of(value: float) -> float:
        return 4 + (BAR_WIDTH - 8) * (value - low + edge) / (high - low + 2 * edge)

    height = BAR_HEIGHT if len(known) > 1 else 16
    drawn = f'<line x1="{x_of(0):.1f}" x2="{x_of(0):.1f}" y1="0" y2="{height}" class="zero"/>' if zero else ""
    for i, (kind, x) in enumerate(known):
        y = 8 + 11 * i
        drawn += f'<line x1="{x_of(x["low"]):.1f}" x2="{x_of(x["high"]):.1f}" y1="{y}" y2="{y}" class="bar {kind}"/>'
        drawn += f'<circle cx="{x_of(x["value"]):.1f}" cy="{y}" r="4" class="dot {kind}"/>'
    return Markup(f'<svg class="interval" viewBox="0 0 {BAR_WIDTH} {height}" aria-hidden="true">{drawn}</svg>')


def reliability_diagram(bins: Sequence[Mapping[str, float]]) -> Markup:
    """Confidence from left to right, the share that is right, with Wilson's interval, from bottom to top; the area of a dot
    is its rows."""
    side = DIAGRAM - 2 * MARGIN
    most = max(x["n"] for x in bins)
    drawn = f'<line x1="{MARGIN}" y1="{MARGIN + side}" x2="{MARGIN + side}" y2="{MARGIN}" class="zero"/>'
    for i in range(0, 101, 25):
        at = MARGIN + side * i / 100
        drawn += f'<line x1="{MARGIN}" x2="{MARGIN + side}" y1="{at:.0f}" y2="{at:.0f}" class="grid"/>'
        drawn += f'<text x="{MARGIN - 6}" y="{MARGIN + side - side * i / 100 + 4:.0f}" text-anchor="end">{i}</text>'
        drawn += f'<text x="{at:.0f}" y="{MARGIN + side + 16}" text-anchor="middle">{i}</text>'
    for x in bins:
        cx, cy = MARGIN + side * x["confidence"], MARGIN + side * (1 - x["accuracy"])
        low, high = wilson(x["accuracy"], x["n"])
        bottom, top = (MARGIN + side * (1 - y) for y in (low, high))
        drawn += f'<line x1="{cx:.1f}" x2="{cx:.1f}" y1="{bottom:.1f}" y2="{top:.1f}" class="whisker"/>'
        radius = max(3.0, POINT * (x["n"] / most) ** 0.5)
        title = Message(
            "confidence {confidence:.0%}: {right:.0%} [{low:.0%}, {high:.0%}] right, n = {n}",
            confidence=x["confidence"], right=x["accuracy"], low=low, high=high, n=int(x["n"]),
        )  # fmt: skip
        drawn += f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:.1f}" class="bin">{_title(title)}</circle>'
    label = html.escape(in_each_language(Message("confidence, and how many answers of that confidence are right")))
    return Markup(f'<svg class="diagram" viewBox="0 0 {DIAGRAM} {DIAGRAM}" role="img" aria-label="{label}">{drawn}</svg>')


def shade(count: int, total: int) -> str:
    """How dark a cell of a confusion matrix is: its share of its row, as a CSS number from 0 to 1."""
    return f"{count / total:.2f}" if total else "0"


def _title(message: Message) -> str:
    """What a browser shows when the mouse is over it."""
    return f"<title>{html.escape(in_each_language(message))}</title>"


def counts_bar(wins: int, ties: int | None, losses: int) -> Markup:
    """Rows won, equal and lost as one bar, beside their numbers."""
    total, start, drawn = max(1, wins + (ties or 0) + losses), 0.0, ""
    for kind, count in (("won", wins), ("tied", ties or 0), ("lost-rows", losses)):
        width = 100 * count / total
        drawn += f'<rect x="{start:.2f}" y="0" width="{width:.2f}" height="6" class="{kind}"/>'
        start += width
    return Markup(f'<svg class="counts" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>')
