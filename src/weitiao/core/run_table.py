"""The table of `weitiao runs`: one row a Run folder, read from plain records without torch and without pydantic."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from weitiao.core import event_log
from weitiao.core.messages import Message
from weitiao.core.row_count import row_count
from weitiao.core.run_status import EVENTS, Status, read_status

HEADLINE = ("accuracy", "exact_match", "loss")  # metrics, the first that was measured is shown
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class RunRow:
    """What a table says about a Run."""

    run: str
    """The folder's name."""
    status: Status | None
    """None: it cannot be read, see `error`."""
    method: str = ""
    objective: str = ""
    metric: str = ""
    before: float | None = None
    after: float | None = None
    n: int | None = None
    """Rows that the metric was measured on after training (before it, where there is no after)."""
    total: int | None = None
    """Rows that were to be measured."""
    error: Message | None = None

    @property
    def count(self) -> Message:
        """'200', or '200 of 1,000'."""
        return Message("") if self.n is None else row_count({"n": self.n, "total": self.total or self.n})

    @property
    def status_message(self) -> Message:
        return self.status.message if self.status else Message("cannot be read: {error}", error=self.error)

    def as_json(self) -> dict[str, Any]:
        record = {**asdict(self), "status": self.status and self.status.state, "step": self.status and self.status.step}
        return {**record, "error": self.error and str(self.error)}


def list_runs(folder: str | Path) -> list[RunRow]:
    """A row for each Run in a folder, by name; a Run that cannot be read does not hide the others."""
    return [read_row(path.parent) for path in sorted(Path(folder).glob("*/recipe.yaml"))]


def read_row(folder: Path) -> RunRow:
    """The row of one Run. Its first event names the parts; only without one the recipe is read."""
    try:
        parts = event_log.first(folder / EVENTS)
        if parts.get("event") != "start":
            parts = _of_recipe(folder / "recipe.yaml")
        scores = _read_scores(folder / "scores.json")
    except (OSError, ValueError, yaml.YAMLError) as error:
        return RunRow(folder.name, None, error=Message(" ".join(str(error).split())))
    before, after = scores.get("before", {}), scores.get("after", {})
    metric = next((name for name in HEADLINE if name in before or name in after), "")
    names = (str(parts.get("method", "")), str(parts.get("objective", "")))
    values = _value(before, metric), _value(after, metric)
    score = after.get(metric) or before.get(metric) or {}
    counts = score.get("n"), score.get("total", score.get("n"))
    return RunRow(folder.name, read_status(folder), *names, metric, *values, *counts)


def _of_recipe(path: Path) -> dict[str, str]:
    recipe = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path.name} is not a recipe")
    parts = {key: recipe.get(key, "") for key in ("method", "objective")}
    return {key: str(x.get("name", "")) if isinstance(x, dict) else str(x) for key, x in parts.items()}


def _read_scores(path: Path) -> dict[str, Any]:
    try:
        scores = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    if not isinstance(scores, dict):
        raise ValueError(f"{path.name} is damaged")
    return scores


def _value(scores: dict[str, Any], metric: str) -> float | None:
    value = scores.get(metric, {}).get("value")
    return float(value) if isinstance(value, (int, float)) else None
