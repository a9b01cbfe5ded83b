"""Task gain (right) against change on an exam (up), one mark a run, with the paired 95 % interval."""

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, EDGE = 720, 420, 56
COLORS = {"full": "#c4320a", "lora": "#2a5db0", "freeze": "#18794e"}


def chart(runs: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of the first exam."""
    marks = [_mark(x) for x in runs]
    gains = [x["gain"] for x in marks]
    low, high = min(x["low"] for x in marks), max(0.0, *(x["high"] for x in marks))
    left, right = min(0.0, *gains), max(gains) * 1.15 or 1.0

    def x_of(gain: float) -> float:
        return EDGE + (WIDTH - EDGE - 20) * (gain - left) / (right - left)

    def y_of(change: float) -> float:
        return 20 + (HEIGHT - EDGE - 20) * (high - change) / ((high - low) or 1.0)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<line x1="{EDGE}" x2="{WIDTH - 20}" y1="{y_of(0):.1f}" y2="{y_of(0):.1f}" stroke="#bbb"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">lower loss on held-out definitions (nats)</text>',
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">'
        f"{runs[0]['exams'][0]['metric']}: change in points</text>",
    ]
    for i in range(5):
        gain, change = left + (right - left) * i / 4, low + (high - low) * i / 4
        parts.append(f'<text x="{x_of(gain):.1f}" y="{HEIGHT - 30}" text-anchor="middle">{gain:.2f}</text>')
        parts.append(f'<text x="{EDGE - 6}" y="{y_of(change) + 4:.1f}" text-anchor="end">{change:+.0f}</text>')
    for x in marks:
        place, color = x_of(x["gain"]), COLORS[x["method"]]
        parts += [
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{y_of(x["low"]):.1f}" y2="{y_of(x["high"]):.1f}" '
            f'stroke="{color}" stroke-opacity=".45"/>',
            f'<circle cx="{place:.1f}" cy="{y_of(x["change"]):.1f}" r="4" fill="{color}"/>',
            f'<text x="{place + 7:.1f}" y="{y_of(x["change"]) + 4:.1f}" fill="{color}">{x["label"]}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _mark(run: Mapping[str, Any]) -> dict[str, Any]:
    exam = run["exams"][0]
    return {
        "method": run["method"],
        "label": f"{run['method']} {100 * run['replay']:.0f} % {run['rate']:g}",
        "gain": run["loss_before"]["value"] - run["loss_after"]["value"],
        **{key: 100 * exam[key] for key in ("change", "low", "high")},
    }
