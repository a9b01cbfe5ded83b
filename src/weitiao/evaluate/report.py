"""report.html: one file to look at, that asks nobody for anything (no scripts, no fonts, no network).

Figures before and after, the loss curve, answers side by side, what was chosen and why, the recipe, the environment.
"""

import json
from pathlib import Path
from typing import Any

import jinja2

from weitiao.core.run import Run, write_text
from weitiao.core.score import PERCENT

WIDTH, HEIGHT, EDGE = 720, 240, 44


def write_report(run: Run) -> Path:
    """Draw a Run folder into its report.html."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8"))
    plan, scores = run.read("plan.json", {}), run.read("scores.json", {})
    steps, validations = list(run.journal("step")), list(run.journal("validation"))
    text = page.render(
        name=run.folder.name,
        status=run.status,
        rows=score_rows(scores),
        n_metrics={name: s["n"] for name, s in scores.get("after", {}).items()},
        curve=jinja2.filters.Markup(curve(steps, validations)),  # pyright: ignore[reportAttributeAccessIssue]
        best=(run.read("trained/step.json") or {}).get("step"),
        samples=run.read_lines("samples.jsonl"),
        choices=plan.get("choices", {}),
        data=plan.get("data", {}),
        recipe=(run.folder / "recipe.yaml").read_text(encoding="utf-8"),
        environment=json.dumps(plan.get("environment", {}), indent=1),
        events=[x for x in run.journal() if x["event"] in EVENTS],
        speed=speed(steps),
    )
    target = run.folder / "report.html"
    write_text(target, text)
    return target


EVENTS = ("resumed", "interrupted", "early_stop", "save_failed", "not_finite", "finished")


def score_rows(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a figure: before, after, the change, and whether the intervals are apart."""
    rows = []
    before, after = scores.get("before", {}), scores.get("after", {})
    for name in after or before:
        a, b = before.get(name), after.get(name)
        row = {"name": name, "before": show(name, a), "after": show(name, b), "change": "", "verdict": ""}
        if a and b and a["n"] and b["n"]:
            change = b["value"] - a["value"]
            row["change"] = f"{100 * change:+.1f} points" if name in PERCENT else f"{change:+.3f}"
            better = (change > 0) == b["higher_is_better"] and change != 0
            apart = b["low"] > a["high"] or b["high"] < a["low"]
            row["verdict"] = ("better" if better else "worse") if apart else "intervals overlap"
        rows.append(row)
    return rows


def show(name: str, score: dict[str, Any] | None) -> str:
    """'78.5 % [72.3 %, 83.6 %], n = 200'."""
    if not score or not score["n"]:
        return "not measured"
    if name in PERCENT:
        value, low, high = (f"{100 * score[key]:.1f} %" for key in ("value", "low", "high"))
    else:
        value, low, high = (f"{score[key]:.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}], n = {score['n']}"


def speed(steps: list[dict[str, Any]]) -> str:
    if not steps:
        return ""
    tokens, seconds = sum(x["tokens"] for x in steps), sum(x["seconds"] for x in steps)
    return f"{len(steps)} steps, {tokens:,} tokens in {seconds:,.0f} s ({tokens / max(seconds, 1e-9):,.0f} tokens/s)"


def curve(steps: list[dict[str, Any]], validations: list[dict[str, Any]]) -> str:
    """The loss curve as SVG: training thin, its running mean thick, validation as points."""
    train = [(x["step"], x["loss"]) for x in steps]
    held = [(x["step"], x["loss"]) for x in validations if x["loss"] is not None]
    if not train:
        return ""
    values = [v for _, v in train + held]
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(s for s, _ in train + held)

    def at(step: float, value: float) -> str:
        x = EDGE + (WIDTH - EDGE - 10) * step / max(last, 1)
        return f"{x:.1f},{10 + (HEIGHT - 40) * (1 - (value - low) / span):.1f}"

    smooth, mean = [], train[0][1]
    for step, value in train:
        mean = 0.9 * mean + 0.1 * value
        smooth.append((step, mean))
    lines = ""
    for i in range(5):
        y = 10 + (HEIGHT - 40) * i / 4
        lines += f'<text x="4" y="{y + 4:.0f}">{high - span * i / 4:.2f}</text>'
        lines += f'<line x1="{EDGE}" x2="{WIDTH - 10}" y1="{y:.0f}" y2="{y:.0f}" class="grid"/>'
    dots = ""
    for step, value in held:
        x, y = at(step, value).split(",")
        dots += f'<circle cx="{x}" cy="{y}" r="4" class="held"><title>step {step}: {value:.4f}</title></circle>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by step">{lines}'
        f'<polyline class="train" points="{" ".join(at(*p) for p in train)}"/>'
        f'<polyline class="smooth" points="{" ".join(at(*p) for p in smooth)}"/>{dots}'
        f'<text x="{WIDTH - 70}" y="{HEIGHT - 6}">step {last}</text></svg>'
    )
