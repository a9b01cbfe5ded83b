"""Every method on one task under one budget: the same rows, steps and seed, each at its own learning rate.

    out/lora  out/freeze  out/ia3 ...     a Run each, trained in a process of its own (so that its peak memory is its own)
    out/comparison.json, comparison.html  quality with n and interval, weights, size, memory, speed, drift from the base

A method that refuses the model is in the table too, with its sentence.
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
from weitiao.core.method import Method
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.registry import find, names
from weitiao.core.run import Run
from weitiao.core.score import format_score, is_percentage, ratio_of_sums
from weitiao.multirun.subprocess_run import train_apart

ROW, LEFT, WIDTH = 26, 150, 720  # of the chart, in pixels


@dataclass
class Compared:
    """What one method reached."""

    method: str
    refused: str = ""
    """Why it did not run."""
    figure: str = ""
    """The name of what is compared."""
    score: dict[str, Any] | None = None
    before: dict[str, Any] | None = None
    trained: int = 0
    """Weights that were learnt."""
    megabytes: float = 0.0
    """Of the result on disk."""
    peak_mb: float = 0.0
    """Of the whole process."""
    tokens_a_second: float = 0.0
    drift: float | None = None
    """From the base on neutral text, in nats a token."""
    rate: float = 0.0
    """The peak learning rate."""
    difference: dict[str, Any] | None = None
    """The figure less the reference's, on the same rows."""
    reference: bool = False
    """`full`, or the first method where `full` is not compared."""

    @property
    def cells(self) -> list[str]:
        """A line of the table."""
        if self.refused:
            return [self.method, self.refused, *[""] * (len(HEAD) - 2)]
        drift = "" if self.drift is None else f"{self.drift:.3f}"
        size, memory, speed = f"{self.megabytes:,.1f}", f"{self.peak_mb:,.0f}", f"{self.tokens_a_second:,.0f}"
        apart = "reference" if self.reference else show_difference(self.figure, self.difference)
        figure, rate = format_score(self.figure, self.score), f"{self.rate:g}"
        return [self.method, figure, apart, rate, f"{self.trained:,}", size, memory, speed, drift]

    @property
    def summary(self) -> list[str]:
        """A line of the table in a terminal, which is narrower than a page; the page has all."""
        if self.refused:
            return [self.method, self.refused, *[""] * (len(SHORT) - 2)]
        figure = format_score(self.figure, self.score).partition(", n =")[0]
        apart = "reference" if self.reference else show_difference(self.figure, self.difference).replace(" points", "")
        return [self.method, figure, apart, f"{self.trained:,}", f"{self.peak_mb:,.0f}", f"{self.tokens_a_second:,.0f}"]


SHORT = ["method", "figure", "less reference", "weights", "MB", "tokens/s"]
HEAD = [
    "method", "figure [95 % interval]", "less the reference, row by row", "rate", "trained weights", "stored MB", "peak MB",
    "tokens/s", "drift",
]  # fmt: skip


def compare_methods(
    recipe: Recipe, wanted: Sequence[str] = (), tell: Callable[[str], None] = lambda words: None
) -> list[Compared]:
    """Train each method, or go on where it was interrupted; the best comes first.

    Args:
        wanted: methods' names; none: all there are.
        tell: hears which method is next.

    Raises:
        RunError: a run failed for another reason than that its method refuses.
    """
    folder, every = Path(recipe.out), wanted or names(Method)
    for name in every:
        find(Method, name)  # an unknown one is said before anything is trained
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for i, name in enumerate(every):
        tell(f"{name} ({i + 1} of {len(every)})")
        found.append(_trained(recipe, name, folder))
    _compare(found, folder)
    found.sort(key=_best_first)
    write_text(folder / "comparison.json", json.dumps([asdict(x) for x in found], indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "comparison.html", page(found))
    return found


def _compare(found: list[Compared], folder: Path) -> None:
    """Each method's difference from the reference."""
    scored = [x for x in found if x.score]
    reference = next((x for x in scored if x.method == "full"), scored[0] if scored else None)
    for x in scored:
        x.reference = x is reference
        if reference and not x.reference and x.figure == reference.figure:
            mine, its = (Run.open(folder / y.method).read("row_results.json", {}).get("after", {}) for y in (x, reference))
            x.difference = _difference(x.figure, mine, its)


def _difference(figure: str, mine: dict[str, list], other: dict[str, list]) -> dict[str, Any] | None:
    """The mean over rows of (this method's less the other's), with its interval; None for figures that no row has alone."""
    if figure == "loss":
        pairs = [(a, b, n) for (a, n), (b, m) in zip(mine.get("row_losses", []), other.get("row_losses", [])) if n == m]
        whole = len(pairs) == len(mine.get("row_losses", []))
    else:
        reads = {"accuracy": "choices", "exact_match": "answers"}.get(figure, "")
        right = [[float(said == wanted) for said, wanted in x.get(reads, [])] for x in (mine, other)]
        pairs, whole = [(a, b, 1.0) for a, b in zip(*right)], len(right[0]) == len(right[1])
    if not pairs or not whole:
        return None
    return ratio_of_sums(figure, [a - b for a, b, _ in pairs], [n for *_, n in pairs]).as_json()


def show_difference(figure: str, score: dict[str, Any] | None) -> str:
    """'-0.7 points [-1.6, +0.3]'."""
    if score is None:
        return ""
    scale, unit = (100, " points") if is_percentage(figure) else (1, "")
    digits = 1 if is_percentage(figure) else 3
    value, low, high = (f"{scale * score[key]:+.{digits}f}" for key in ("value", "low", "high"))
    return f"{value}{unit} [{low}, {high}]"


def _trained(recipe: Recipe, name: str, folder: Path) -> Compared:
    place = folder / name
    plain = recipe.model_dump(mode="json")
    plain |= {"method": recipe.method.as_recipe() if name == recipe.method.name else name, "out": str(place)}
    try:
        asked = make_recipe(plain)
    except RecipeError as needs:  # a method that must be told more than its name
        return Compared(name, refused=str(needs))
    if refused := train_apart(asked, folder / f"{name}.yaml"):
        return Compared(name, refused=refused)
    return read(Run.open(place), name)


def read(run: Run, name: str) -> Compared:
    """What a finished Run says of its method."""
    scores, steps, decisions = run.scores, list(run.events(events.Step)), run.decisions
    after = scores.get("after", {})
    figure = next((name for name, x in after.items() if x["higher_is_better"] and x["n"]), "loss")
    drifts = [x.scores["drift"]["value"] for x in run.events(events.Validation) if "drift" in x.scores]
    memory = list(run.events(events.Memory))
    seconds = sum(x.seconds for x in steps[1:])  # the first step warms up
    return Compared(
        name,
        figure=figure,
        score=after.get(figure),
        before=scores.get("before", {}).get(figure),
        trained=decisions["model.trainable_weights"].value,
        megabytes=run.best_weights.stat().st_size / 1e6,
        peak_mb=memory[-1].peak_mb if memory else 0.0,
        tokens_a_second=sum(x.tokens for x in steps[1:]) / seconds if seconds else 0.0,
        drift=drifts[-1] if drifts else None,
        rate=decisions["train.learning_rate"].value,
    )


def _best_first(x: Compared) -> tuple[bool, float]:
    if x.score is None:
        return True, 0.0
    return False, -x.score["value"] if x.score["higher_is_better"] else x.score["value"]


def page(found: Sequence[Compared]) -> str:
    """The comparison as one HTML file: chart and table, no scripts."""
    cells = lambda words, tag: "".join(f"<{tag}>{html.escape(x)}</{tag}>" for x in words)  # noqa: E731
    rows = "".join(f"<tr>{cells(x.cells, 'td')}</tr>" for x in found)
    style = (
        ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,'PingFang SC','Microsoft YaHei',sans-serif;"
        "max-width:60rem;margin:2rem auto;padding:0 1rem}td,th{text-align:left;padding:.3rem .8rem .3rem 0;"
        "border-bottom:1px solid #8884}"
        "table{border-collapse:collapse}svg{width:100%}text{font-size:12px;fill:currentColor}"
    )
    head = f'<!doctype html><meta charset="utf-8"><title>methods compared · weitiao</title><style>{style}</style>'
    return f"{head}<h1>Methods compared</h1>{chart(found)}<table><tr>{cells(HEAD, 'th')}</tr>{rows}</table>\n"


def chart(found: Sequence[Compared]) -> str:
    """A dot and its interval a method, as SVG; the base model before training as a dashed line."""
    scored = [x for x in found if x.score]
    if not scored:
        return ""
    begun = [x.before["value"] for x in scored if x.before and not find(Method, x.method).rounds_base]
    base = begun[0] if begun else None
    ends: list[float] = [x.score[key] for x in scored for key in ("low", "high") if x.score]
    ends += [] if base is None else [base]
    low, high = min(ends), max(ends)
    at = lambda value: LEFT + (WIDTH - LEFT - 20) * (value - low) / ((high - low) or 1.0)  # noqa: E731
    lines = ""
    for i, x in enumerate(scored):
        y, score = 18 + ROW * i, x.score or {}
        lines += f'<text x="0" y="{y + 4}">{x.method}</text>'
        lines += f'<line x1="{at(score["low"]):.0f}" x2="{at(score["high"]):.0f}" y1="{y}" y2="{y}" stroke="#2a5db0"/>'
        lines += f'<circle cx="{at(score["value"]):.0f}" cy="{y}" r="5" fill="#2a5db0">'
        lines += f"<title>{html.escape(format_score(x.figure, score))}</title></circle>"
    bottom = 18 + ROW * len(scored)
    if base is not None:
        x = f"{at(base):.0f}"
        lines += f'<line x1="{x}" x2="{x}" y1="4" y2="{bottom}" stroke="#c4320a" stroke-dasharray="3 3"/>'
        lines += f'<text x="{x}" y="{bottom + 14}">before</text>'
    words = f'<text x="{LEFT}" y="{bottom + 30}">{html.escape(scored[0].figure)}: {low:.3f} to {high:.3f}</text>'
    return f'<svg viewBox="0 0 {WIDTH} {bottom + 40}" role="img" aria-label="methods compared">{lines}{words}</svg>'
