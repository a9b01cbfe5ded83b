"""report.html: one file to look at, that asks nobody for anything (no scripts, no fonts, no network).

Figures before and after, the loss curve, answers side by side, what was chosen and why, the recipe, the environment.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2

from weitiao.core import events
from weitiao.core.files import write_text
from weitiao.core.finding import Finding
from weitiao.core.history import history, summary, throughput
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.core.score import format_score, score_rows

WIDTH, HEIGHT, EDGE = 720, 240, 44


def write_report(run: Run) -> Path:
    """Draw a Run folder into its report.html."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8"))
    plan, scores = run.read("resolved.json", {}), run.read("scores.json", {})
    steps, validations = list(run.events(events.Step)), list(run.events(events.Validation))
    text = page.render(
        name=run.folder.name,
        status=run.status,
        rows=score_rows(scores),
        findings=[Finding.from_json(x) for x in run.read("preflight.json", [])],
        baselines={name: format_score(s["name"], s) for name, s in scores.get("baselines", {}).items()},
        curve=jinja2.filters.Markup(curve(steps, validations, list(run.events(events.Skip, events.Rollback)))),  # pyright: ignore[reportAttributeAccessIssue]
        best=(run.read("best/step.json") or {}).get("step"),
        samples=run.read("samples.jsonl"),
        decisions=list(run.decisions.values()),
        data=plan.get("data", {}),
        previews=[(Message.from_json(x["title"]), x["pieces"]) for x in plan.get("previews", [])],
        recipe=(run.folder / "recipe.yaml").read_text(encoding="utf-8"),
        environment=json.dumps(plan.get("environment", {}), indent=1),
        summary=summary(run),
        events=[(f"step {step}" if step is not None else "", message) for step, message in history(run)],
        speed=" · ".join(x for x in map(str, filter(None, (speed(steps), throughput(run))))),
    )
    target = run.folder / "report.html"
    write_text(target, text)
    return target


def speed(steps: Sequence[events.Step]) -> Message | None:
    if not steps:
        return None
    tokens, seconds = sum(x.tokens for x in steps), sum(x.seconds for x in steps)
    return Message(
        "{steps:,} steps, {tokens:,} tokens in {seconds:,.0f} s ({rate:,.0f} tokens/s)",
        steps=len(steps),
        tokens=tokens,
        seconds=seconds,
        rate=tokens / max(seconds, 1e-9),
    )


def curve(
    steps: Sequence[events.Step],
    validations: Sequence[events.Validation],
    guarded: Sequence[events.Skip | events.Rollback] = (),
) -> str:
    """The loss curve as SVG: training thin, its running mean thick, validation as points, skips and returns as lines."""
    train = [(x.step, x.loss) for x in steps]
    held = [(x.step, x.loss) for x in validations if x.loss is not None]
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
    marks = ""
    for x_event in guarded:
        event, x = events.kind_of(x_event), at(x_event.step, low).split(",")[0]
        words = html.escape(f"step {x_event.step}, {event}: {x_event.reason}")
        marks += f'<line x1="{x}" x2="{x}" y1="10" y2="{HEIGHT - 30}" class="{event}"><title>{words}</title></line>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss by step">{lines}'
        f'<polyline class="train" points="{" ".join(at(*p) for p in train)}"/>'
        f'<polyline class="smooth" points="{" ".join(at(*p) for p in smooth)}"/>{marks}{dots}'
        f'<text x="{WIDTH - 70}" y="{HEIGHT - 6}">step {last}</text></svg>'
    )
