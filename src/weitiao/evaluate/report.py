"""report.html: a Run as one page that loads nothing else (no scripts, no fonts, no network).

Scores before and after, the loss curve, answers side by side, decisions with their reasons, the recipe, the environment.
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from weitiao.core import events
from weitiao.core.files import write_text
from weitiao.core.finding import Finding
from weitiao.core.forgetting_lines import forgetting_lines
from weitiao.core.history import history, result, summary, throughput
from weitiao.core.messages import Message, language
from weitiao.core.run import Run
from weitiao.core.score import format_score, score_notes, score_rows
from weitiao.evaluate.comparison.difference import VERDICTS

WIDTH, HEIGHT, EDGE = 720, 240, 44  # of the curve, in pixels
LABELS = {
    "scores": Message("Before and after"),
    "metric": Message("metric"),
    "before": Message("before"),
    "after": Message("after"),
    "change": Message("change"),
    "baselines": Message("To compare with:"),
    "intervals": Message("Brackets are 95 % intervals. Measured on held-out rows that were not trained on."),
    "forgetting": Message("What it forgot"),
    "paired": Message(
        "The same items before and after; ±: the paired 95 % interval (its wider half); verdicts after Holm."
    ),
    "loss": Message("Loss"),
    "legend": Message(
        "thin: each step · thick: running mean · dots: validation · dashed: a skipped step · vertical line: a rollback"
    ),
    "samples": Message("Answers, before and after"),
    "reference": Message("reference"),
    "events": Message("What happened"),
    "step": Message("step"),
    "preflight": Message("Preflight check"),
    "data": Message("Data"),
    "decisions": Message("Chosen for you, and why"),
    "phases": Message("Time"),
    "recipe": Message("Recipe"),
    "environment": Message("Environment"),
}


def write_report(run: Run) -> Path:
    """Draw a Run folder into its report.html, in the reader's language."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((Path(__file__).parent / "report.html.jinja").read_text(encoding="utf-8"))
    resolved = run.read("resolved.json", {})
    steps, validations = list(run.events(events.Step)), list(run.events(events.Validation))
    data = resolved.get("data", {})
    text = page.render(
        language=language(),
        label=LABELS,
        name=run.folder.name,
        status=run.status,
        result=result(run),
        speed=" · ".join(str(x) for x in (speed(steps), throughput(run)) if x is not None),
        rows=score_rows(run.scores),
        notes=score_notes(run.scores),
        baselines={name: format_score(x["name"], x) for name, x in run.scores.get("baselines", {}).items()},
        prompted=Message.from_json(run.scores["prompted"]["sentence"]) if "prompted" in run.scores else "",
        forgotten=[(kind, text, VERDICTS.get(kind, "")) for kind, text in forgetting_lines(run.scores.get("forgetting"))],
        curve=Markup(curve(steps, validations, list(run.events(events.Skip, events.Rollback)))),
        samples=run.read("samples.jsonl"),
        summary=summary(run),
        events=list(history(run)),
        findings=[Finding.from_json(x) for x in run.read("preflight.json", [])],
        data={**{key: x for key, x in data.items() if key != "notes"}, **data.get("notes", {})},
        previews=[(Message.from_json(x["title"]), x["pieces"]) for x in resolved.get("previews", [])],
        decisions=list(run.decisions.values()),
        phases=phase_seconds(run),
        recipe=(run.folder / "recipe.yaml").read_text(encoding="utf-8"),
        environment=json.dumps(resolved.get("environment", {}), indent=1),
    )
    target = run.folder / "report.html"
    write_text(target, text)
    return target


def phase_seconds(run: Run) -> dict[str, float]:
    """How long each phase took; of a resumed run, over all its attempts."""
    seconds: dict[str, float] = {}
    for x in run.events(events.Phase):
        if x.seconds is not None:
            seconds[x.name] = seconds.get(x.name, 0.0) + x.seconds
    return seconds


def speed(steps: Sequence[events.Step]) -> Message | None:
    """Steps, tokens and seconds together; None where no step was taken."""
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
    """The loss curve as SVG: training thin, its running mean thick, validation as dots, skips and rollbacks as lines."""
    training = [(x.step, x.loss) for x in steps]
    validation = [(x.step, x.loss) for x in validations if x.loss is not None]
    if not training:
        return ""
    losses = [loss for _, loss in training + validation]
    low, high, last = min(losses), max(losses), max(step for step, _ in training + validation)
    span = (high - low) or 1.0

    def x_of(step: float) -> float:
        return EDGE + (WIDTH - EDGE - 10) * step / max(last, 1)

    def y_of(loss: float) -> float:
        return 10 + (HEIGHT - 40) * (1 - (loss - low) / span)

    def points(pairs: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x_of(step):.1f},{y_of(loss):.1f}" for step, loss in pairs)

    grid = ""
    for i in range(5):
        y, loss = 10 + (HEIGHT - 40) * i / 4, high - span * i / 4
        grid += f'<text x="4" y="{y + 4:.0f}">{loss:.2f}</text>'
        grid += f'<line x1="{EDGE}" x2="{WIDTH - 10}" y1="{y:.0f}" y2="{y:.0f}" class="grid"/>'
    dots = ""
    for step, loss in validation:
        title = _title(Message("step {step}: {loss:.4f}", step=step, loss=loss))
        dots += f'<circle cx="{x_of(step):.1f}" cy="{y_of(loss):.1f}" r="4" class="held">{title}</circle>'
    marks = ""
    for event in guarded:
        x, title = f"{x_of(event.step):.1f}", _title(Message("step {step}: {reason}", step=event.step, reason=event.reason))
        kind = events.kind_of(event)
        marks += f'<line x1="{x}" x2="{x}" y1="10" y2="{HEIGHT - 30}" class="{kind}">{title}</line>'
    label = html.escape(str(Message("loss by step")))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{grid}'
        f'<polyline class="train" points="{points(training)}"/>'
        f'<polyline class="smooth" points="{points(_running_mean(training))}"/>{marks}{dots}'
        f'<text x="{WIDTH - 70}" y="{HEIGHT - 6}">{LABELS["step"]} {last}</text></svg>'
    )


def _running_mean(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """An exponential mean in which the newest loss counts a tenth."""
    mean, means = pairs[0][1], []
    for step, loss in pairs:
        mean = 0.9 * mean + 0.1 * loss
        means.append((step, mean))
    return means


def _title(message: Message) -> str:
    """What a browser shows when the mouse is over it."""
    return f"<title>{html.escape(str(message))}</title>"
