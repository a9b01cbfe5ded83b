"""The chart of the growth suite as SVG: one row per series, speed on the left, memory on the right, one line per side.

python -m bench.growth.chart bench/results/growth.json      writes bench/results/growth.svg again
"""

import json
import math
import sys
from html import escape
from pathlib import Path
from statistics import median

from bench.growth.report import TITLES, UNITS, measured, memory_used, speeds

WIDTH, TOP, ROW, TALL, WIDE = 900, 70, 200, 120, 355
LEFTS = (65, 515)
NAMES = {"weitiao": "weitiao", "plain": "transformers + autograd"}
STYLE = """
  .paper { fill: #ffffff } text { fill: #333333; font-family: sans-serif; font-size: 12px } .axis { stroke: #8a8a8a }
  .grid { stroke: #e3e3e3 } .weitiao { stroke: #c0392b; fill: #c0392b } .plain { stroke: #2c6fbb; fill: #2c6fbb }
  polyline { fill: none !important; stroke-width: 2 } .title { font-size: 13px; font-weight: bold }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #14181d } text { fill: #d5d9de } .axis { stroke: #8a9099 } .grid { stroke: #2c333b }
    .weitiao { stroke: #ff8373; fill: #ff8373 } .plain { stroke: #79b4f2; fill: #79b4f2 }
  }
"""
LOG_FROM = 8  # ratio of greatest to least value from which an axis is logarithmic


class Axis:
    """Values to coordinates: linear from zero, or logarithmic if the values span a wide range."""

    def __init__(self, values: list[float], start: float, end: float) -> None:
        low, high = min(values), max(values)
        self.log = low > 0 and high / low >= LOG_FROM
        self.start, self.end = start, end
        self.low, self.high = (low / 1.15, high * 1.15) if self.log else (0.0, high * 1.08)

    def __call__(self, value: float) -> float:
        scale = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return self.start + (self.end - self.start) * (scale(value) - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """Round values on the axis: 1, 2, 5 and 10 of each power of ten, or only powers of ten if those are many."""
        if not self.log:
            step = next(x for x in _round_numbers(self.high / 1000) if self.high / x <= 4)
            return [step * i for i in range(int(self.high / step) + 1)]
        numbers = [x for x in _round_numbers(self.low) if self.low <= x <= self.high]
        tens = [x for x in numbers if math.isclose(math.log10(x) % 1, 0, abs_tol=1e-9)]
        return tens if len(numbers) > 5 and len(tens) > 1 else numbers[:: max(1, len(numbers) // 4)]


def _round_numbers(above: float) -> list[float]:
    """1, 2, 5, 10, 20 ... from about `above`, over eight powers of ten."""
    first = math.floor(math.log10(above))
    return [digit * 10.0**power for power in range(first, first + 8) for digit in (1, 2, 5)]


def text(x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def mark(x: float, y: float, who: str) -> str:
    """A circle for weitiao, a square for the other side: distinguishable without colours."""
    if who == "weitiao":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="{who}"/>'
    return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7" class="{who}"/>'


def label(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"


def panel(
    points: list[tuple[dict, dict]], values: dict[str, dict[int, list[float]]], corner: tuple[float, float]
) -> list[str]:
    """Axes, and per side a line through the medians with whiskers from the least to the greatest value.

    Args:
        values: for each side, point number -> measured values.
    """
    left, top = corner
    everything = [x for side in values.values() for measured_values in side.values() for x in measured_values]
    up = Axis(everything, top + TALL, top)
    along = Axis([point["x"] for point, _ in points], left + 16, left + WIDE - 16)
    if along.log or len(points) == 1:
        along.low, along.high = (f([point["x"] for point, _ in points]) for f in (min, max))
    drawn = []
    for tick in up.ticks():
        drawn += [line(left, up(tick), left + WIDE, up(tick), "grid"), text(left - 6, up(tick) + 4, label(tick), "end")]
    drawn += [line(left, top + TALL, left + WIDE, top + TALL, "axis"), line(left, top, left, top + TALL, "axis")]
    for point, _ in points:
        x = along(point["x"])
        drawn += [line(x, top + TALL, x, top + TALL + 4, "axis"), text(x, top + TALL + 18, point["label"], "middle")]
    for who, side in values.items():
        spots = [(along(points[number][0]["x"]), ys) for number, ys in side.items()]
        drawn.append(f'<polyline class="{who}" points="{" ".join(f"{x:.1f},{up(median(ys)):.1f}" for x, ys in spots)}"/>')
        for x, ys in spots:
            drawn += [line(x, up(min(ys)), x, up(max(ys)), who), mark(x, up(median(ys)), who)]
    return drawn


def row(name: str, points: list[tuple[dict, dict]], unit: str, top: float) -> list[str]:
    """One series: speed and memory."""
    drawn = []
    for left, title, read in (
        (LEFTS[0], "tokens per second", speeds),
        (LEFTS[1], "memory, MB", lambda case, who: [memory_used(case, who)]),
    ):
        values = {
            who: {number: read(case, who) for number, (_, case) in enumerate(points) if who in case["seconds"]}
            for who in NAMES
        }
        drawn.append(text(left - 40, top - 14, f"{TITLES[name]}: {title}", kind="title"))
        drawn += panel(points, {who: side for who, side in values.items() if side}, (left, top))
        drawn.append(text(left + WIDE, top + TALL + 34, unit, "end"))
    return drawn


def draw(results: dict) -> str:
    series = measured(results)
    tall = TOP + ROW * len(series) + 10
    drawn = [text(WIDTH / 2, 24, "How LoRA fine-tuning grows: speed and peak memory", "middle", "title")]
    has_gaps = any(case["left_out"] for case in results["cases"].values())
    limit = f" (left out where it would need more than {results['setup']['limit_gb']:g} GB)" if has_gaps else ""
    for who, x, more in (("weitiao", 300, ""), ("plain", 400, limit)):
        drawn += [mark(x, 42, who), text(x + 10, 46, NAMES[who] + more)]
    for number, (name, points) in enumerate(series.items()):
        drawn += row(name, points, UNITS[name], TOP + 24 + ROW * number)
    size = f'width="{WIDTH}" height="{tall}" viewBox="0 0 {WIDTH} {tall}"'
    paper = f'<rect width="{WIDTH}" height="{tall}" class="paper"/>'
    body = "\n".join([f"<style>{STYLE}</style>", paper, *drawn])
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n'


def main() -> None:
    path = Path(sys.argv[1])
    path.with_suffix(".svg").write_text(draw(json.loads(path.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
