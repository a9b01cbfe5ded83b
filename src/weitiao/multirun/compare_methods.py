"""Every method on one task under one budget: the same rows, steps and seed, each with its own learning rate.

    out/lora  out/freeze  out/ia3 ...     a Run each, trained in a process of its own (so that its peak memory is its own)
    out/comparison.json, comparison.html  score with n and interval, weights, size, memory, speed, drift from the base

A method that refuses the model is in the table too, with its reason.
"""

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weitiao.core import events
from weitiao.core.errors import RecipeError
from weitiao.core.files import write_text
from weitiao.core.messages import Message, translate
from weitiao.core.method import Method
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.registry import find, names
from weitiao.core.run import Run
from weitiao.core.score import format_score, is_percentage, ratio_of_sums
from weitiao.multirun.subprocess_run import train_in_subprocess

ROW, LEFT, WIDTH, RIGHT, TOP = 26, 150, 720, 20, 18  # of the chart, in pixels
SHORT = (
    Message("method"),
    Message("score"),
    Message("minus reference"),
    Message("weights"),
    Message("MB"),
    Message("tokens/s"),
)
HEAD = (
    Message("method"), Message("score [95 % interval]"), Message("minus the reference, row by row"),
    Message("learning rate"), Message("trained weights"), Message("size, MB"), Message("peak memory, MB"),
    Message("tokens/s"), Message("drift"),
)  # fmt: skip
RECORDS = {"accuracy": "choices", "exact_match": "answers"}  # in row_results.json, row by row


@dataclass
class Compared:
    """What one method reached."""

    method: str
    refused: str = ""
    """Why it was not trained."""
    metric: str = ""
    """The metric that is compared."""
    score: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    trainable_weights: int = 0
    size_mb: float = 0.0
    """Of the trained weights on disk."""
    peak_mb: float = 0.0
    """Of the whole process."""
    tokens_per_second: float = 0.0
    drift: float | None = None
    """From the base on neutral text, in nats per token."""
    learning_rate: float = 0.0
    """Peak."""
    difference: dict[str, Any] | None = None
    """The score minus the reference's, on the same rows."""
    reference: bool = False
    """`full`, or the first method if `full` is not compared."""

    @property
    def cells(self) -> list[str]:
        """A line of the page's table."""
        if self.refused:
            return [self.method, self.refused, *[""] * (len(HEAD) - 2)]
        return [
            self.method,
            format_score(self.metric, self.score),
            self._difference,
            f"{self.learning_rate:g}",
            f"{self.trainable_weights:,}",
            f"{self.size_mb:,.1f}",
            f"{self.peak_mb:,.0f}",
            f"{self.tokens_per_second:,.0f}",
            "" if self.drift is None else f"{self.drift:.3f}",
        ]

    @property
    def summary(self) -> list[str]:
        """A line of the terminal's table, which is narrower than the page's."""
        if self.refused:
            return [self.method, self.refused, *[""] * (len(SHORT) - 2)]
        score = format_score(self.metric, self.score).partition(", n =")[0]
        numbers = (self.trainable_weights, self.peak_mb, self.tokens_per_second)
        return [self.method, score, self._difference, *(f"{x:,.0f}" for x in numbers)]

    @property
    def _difference(self) -> str:
        return translate("reference") if self.reference else format_difference(self.metric, self.difference)


def compare_methods(
    recipe: Recipe, methods: Sequence[str] = (), report: Callable[[Message], None] = lambda message: None
) -> list[Compared]:
    """Train each method, or resume where it was interrupted; the best comes first.

    Args:
        methods: names; (): every method.
        report: is told which method is next.

    Raises:
        RecipeError: there is no such method.
        RunError: a run failed for another reason than that its method refuses.
    """
    folder, methods = Path(recipe.out), methods or names(Method)
    for name in methods:
        find(Method, name)  # an unknown one is refused before anything is trained
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for i, name in enumerate(methods, 1):
        report(Message("{method} ({i} of {n})", method=name, i=i, n=len(methods)))
        results.append(_train(recipe, name, folder))
    _set_differences(results, folder)
    results.sort(key=_rank)
    record = json.dumps([asdict(x) for x in results], indent=1, ensure_ascii=False)
    write_text(folder / "comparison.json", record + "\n")
    write_text(folder / "comparison.html", render_page(results))
    return results


def _train(recipe: Recipe, name: str, folder: Path) -> Compared:
    plain = recipe.model_dump(mode="json")
    method = recipe.method.as_recipe() if name == recipe.method.name else name
    try:
        own = make_recipe({**plain, "method": method, "out": str(folder / name)})
    except RecipeError as error:  # a method with required settings
        return Compared(name, refused=str(error))
    if refusal := train_in_subprocess(own, folder / f"{name}.yaml"):
        return Compared(name, refused=str(refusal))
    return read_result(Run.open(folder / name), name)


def read_result(run: Run, name: str) -> Compared:
    """What a finished Run says about its method."""
    scores, steps, decisions = run.scores, list(run.events(events.Step)), run.decisions
    after = scores.get("after", {})
    metric = next((name for name, x in after.items() if x["higher_is_better"] and x["n"]), "loss")
    drifts = [x.scores["drift"]["value"] for x in run.events(events.Validation) if "drift" in x.scores]
    memory = list(run.events(events.Memory))
    seconds = sum(x.seconds for x in steps[1:])  # the first step warms up
    return Compared(
        name,
        metric=metric,
        score=after.get(metric),
        before=scores.get("before", {}).get(metric),
        trainable_weights=decisions["model.trainable_weights"].value,
        size_mb=run.best_weights.stat().st_size / 1e6,
        peak_mb=memory[-1].peak_mb if memory else 0.0,
        tokens_per_second=sum(x.tokens for x in steps[1:]) / seconds if seconds else 0.0,
        drift=drifts[-1] if drifts else None,
        learning_rate=decisions["train.learning_rate"].value,
    )


def _set_differences(results: list[Compared], folder: Path) -> None:
    """Each method's difference from the reference."""
    scored = [x for x in results if x.score]
    reference = next((x for x in scored if x.method == "full"), scored[0] if scored else None)
    for x in scored:
        x.reference = x is reference
        if reference and not x.reference and x.metric == reference.metric:
            rows = [Run.open(folder / y.method).read("row_results.json", {}).get("after", {}) for y in (x, reference)]
            x.difference = _difference(x.metric, *rows)


def _difference(metric: str, own: dict[str, list], other: dict[str, list]) -> dict[str, Any] | None:
    """The mean over rows of (this method minus the other), with its interval; None for metrics that no single row has."""
    if metric == "loss":
        losses = own.get("row_losses", []), other.get("row_losses", [])
        pairs = [(a, b, n) for (a, n), (b, m) in zip(*losses) if n == m]
        complete = len(pairs) == len(losses[0])
    else:
        hits = [[float(said == right) for said, right in x.get(RECORDS.get(metric, ""), [])] for x in (own, other)]
        pairs, complete = [(a, b, 1.0) for a, b in zip(*hits)], len(hits[0]) == len(hits[1])
    if not pairs or not complete:
        return None
    return ratio_of_sums(metric, [a - b for a, b, _ in pairs], [n for *_, n in pairs]).as_json()


def format_difference(metric: str, score: dict[str, Any] | None) -> str:
    """'-0.7 [-1.6, +0.3]': in percentage points where the metric is a percentage."""
    if score is None:
        return ""
    scale, digits = (100, 1) if is_percentage(metric) else (1, 3)
    value, low, high = (f"{scale * score[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _rank(x: Compared) -> tuple[bool, float]:
    """The best first, refusals last."""
    if x.score is None:
        return True, 0.0
    return False, -x.score["value"] if x.score["higher_is_better"] else x.score["value"]


# -- the page ---------------------------------------------------------------------------------------------------------


def render_page(results: Sequence[Compared]) -> str:
    """The comparison as one HTML file: chart and table, no scripts."""

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{html.escape(x)}</{tag}>' for x in cells)}</tr>"

    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,'PingFang SC','Microsoft YaHei',sans-serif;"
        "max-width:60rem;margin:2rem auto;padding:0 1rem}td,th{text-align:left;padding:.3rem .8rem .3rem 0;"
        "border-bottom:1px solid #8884}"
        "table{border-collapse:collapse}svg{width:100%}text{font-size:12px;fill:currentColor}"
    )
    title = translate("Methods compared")
    head = f'<!doctype html><meta charset="utf-8"><title>{title} · weitiao</title><style>{style}</style>'
    table = row([str(x) for x in HEAD], "th") + "".join(row(x.cells, "td") for x in results)
    return f"{head}<h1>{title}</h1>{_chart(results)}<table>{table}</table>\n"


def _chart(results: Sequence[Compared]) -> str:
    """A dot and its interval for each method, as SVG; the base model before training as a dashed line."""
    scored = [(x, x.score) for x in results if x.score]
    if not scored:
        return ""
    before = [x.before["value"] for x, _ in scored if x.before and not find(Method, x.method).rounds_base]
    base: float | None = before[0] if before else None
    ends = [score[key] for _, score in scored for key in ("low", "high")] + ([] if base is None else [base])
    low, high = min(ends), max(ends)

    def x_of(value: float) -> str:
        return f"{LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / ((high - low) or 1.0):.0f}"

    lines = ""
    for i, (x, score) in enumerate(scored):
        y = TOP + ROW * i
        lines += f'<text x="0" y="{y + 4}">{x.method}</text>'
        lines += f'<line x1="{x_of(score["low"])}" x2="{x_of(score["high"])}" y1="{y}" y2="{y}" stroke="#2a5db0"/>'
        lines += f'<circle cx="{x_of(score["value"])}" cy="{y}" r="5" fill="#2a5db0">'
        lines += f"<title>{html.escape(format_score(x.metric, score))}</title></circle>"
    bottom = TOP + ROW * len(scored)
    if base is not None:
        x = x_of(base)
        lines += f'<line x1="{x}" x2="{x}" y1="4" y2="{bottom}" stroke="#c4320a" stroke-dasharray="3 3"/>'
        lines += f'<text x="{x}" y="{bottom + 14}">{translate("before")}</text>'
    scale = Message("{metric}: {low:.3f} to {high:.3f}", metric=scored[0][0].metric, low=low, high=high)
    lines += f'<text x="{LEFT}" y="{bottom + 30}">{html.escape(str(scale))}</text>'
    label = translate("Methods compared")
    return f'<svg viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="{label}">{lines}</svg>'
