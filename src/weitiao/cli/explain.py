"""The words under the recipe's fields, as a table: `weitiao explain`."""

from typing import Any

from pydantic_core import PydanticUndefined
from rich.markup import escape
from rich.table import Table

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import Evaluate, GradientScale, Recipe, Replay, Source, Train
from weitiao.core.registry import FOLDERS, Component, Settings, find, names, nearest

SECTIONS: dict[str, type[Settings]] = {
    "": Recipe,
    "data": Source,
    "replay": Replay,
    "train": Train,
    "train.gradient_scale": GradientScale,
    "evaluate": Evaluate,
}
SECTIONS_HELP = {name: (section.__doc__ or "") for name, section in SECTIONS.items() if name}
PARTS = ("method", "objective", "optimizer", "clip", "metric")


def explain(key: str = "") -> Table:
    """A table of keys, defaults and meanings: of all, of a section, of one key or of a part.

    Raises:
        RecipeError: there is no such key; the nearest is named.
    """
    every = {
        f"{section}.{name}".strip("."): field for section, s in SECTIONS.items() for name, field in s.model_fields.items()
    }
    parts = {name: find(kind, name) for kind in PARTS if kind in FOLDERS for name in names(kind)}
    last = key.rpartition(".")[2]
    if last in parts:
        return _table(parts[last].model_fields, f"{last}: {(parts[last].__doc__ or '').strip()}")
    found = {name: field for name, field in every.items() if not key or name == key or name.startswith(key + ".")}
    if not found:
        raise RecipeError(f"there is no key or part {key!r}.{nearest(key, [*every, *parts])}")
    return _table(found, "recipe keys")


def _table(fields: dict[str, Any], title: str) -> Table:
    table = Table("key", "default", "what it means", title=title, title_justify="left")
    if not fields:
        table.add_row("", "", "it has no settings")
    for name, field in fields.items():
        table.add_row(name, escape(_default(field)), escape(field.description or SECTIONS_HELP.get(name, "")))
    return table


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "(required)"
    if isinstance(value, Component):
        return value.name
    return "" if isinstance(value, Settings) else "null" if value is None else str(value)
