"""A Run in a notebook: status, scores before and after, loss curve. What `Run._repr_html_` returns."""

import html
from collections.abc import Sequence
from typing import Any

from weitiao.core.messages import Message
from weitiao.core.score import score_notes, score_rows

WIDTH, HEIGHT = 480, 90  # of the curve, in pixels
COLUMNS = (
    Message("metric"),
    Message("n"),
    Message("before"),
    Message("after"),
    Message("change"),
    Message(""),
)  # of score_rows


def run_html(title: str, status: Message, scores: dict[str, Any], losses: Sequence[float]) -> str:
    """An HTML fragment without scripts.

    Args:
        scores: before, after -> by name, as in scores.json.
        losses: the training loss of each step.
    """
    parts = [f"<p><b>{html.escape(title)}</b>: {html.escape(str(status))}</p>"]
    if rows := score_rows(scores):
        head = _row([str(x) for x in COLUMNS], "th")
        cells = ([str(x[key]) for key in ("name", "n", "before", "after", "change", "verdict_text")] for x in rows)
        parts.append(f"<table>{head}{''.join(_row(x, 'td') for x in cells)}</table>")
        parts += [f"<p>{html.escape(str(x))}</p>" for x in score_notes(scores)]
    if len(losses) > 1:
        parts.append(_curve(losses))
    return "".join(parts)


def _row(cells: Sequence[str], tag: str) -> str:
    written = "".join(f'<{tag} style="text-align:left">{html.escape(x)}</{tag}>' for x in cells)
    return f"<tr>{written}</tr>"


def _curve(losses: Sequence[float]) -> str:
    """The losses as an SVG line."""
    low, high = min(losses), max(losses)
    points = " ".join(
        f"{WIDTH * i / (len(losses) - 1):.1f},{HEIGHT * (high - x) / ((high - low) or 1.0):.1f}"
        for i, x in enumerate(losses)
    )
    text = Message("training loss {first:.3f} -> {last:.3f}, {n:,} steps", first=losses[0], last=losses[-1], n=len(losses))
    line = f'<polyline points="{points}" fill="none" stroke="#2a5db0" stroke-width="1.5"/>'
    svg = f'<svg viewBox="0 -3 {WIDTH} {HEIGHT + 6}" width="{WIDTH}" height="{HEIGHT}" role="img">{line}</svg>'
    return f"<p>{html.escape(str(text))}<br>{svg}</p>"
