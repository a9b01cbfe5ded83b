"""`weitiao explain`: what a recipe key or a component means, and its default."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from weitiao.cli import handbook
from weitiao.cli.handbook import Entry, Handbook
from weitiao.core.errors import RecipeError
from weitiao.core.messages import translate
from weitiao.core.registry import nearest


def explain(key: str = "") -> Table:
    """A table of keys, defaults and help: of all keys, a section, one key or a component.

    Raises:
        RecipeError: there is no such key; the message names the nearest.
    """
    book = handbook.read()
    table = _find(book, key)
    if table is None:
        book = handbook.build()  # a component newer than the stored handbook
        table = _find(book, key)
    if table is None:
        available = [*book["keys"], *book["parts"]]
        raise RecipeError("there is no key or component {key!r}.{hint}", key=key, hint=nearest(key, available))
    return table


def schema() -> dict[str, Any]:
    """The recipe's JSON Schema, its descriptions in the reader's language."""
    return _translated(handbook.read()["schema"])


def _find(book: Handbook, key: str) -> Table | None:
    last = key.rpartition(".")[2]
    if part := book["parts"].get(last):
        return _table(part["settings"], f"{last}: {translate(part['help'])}")
    entries = {name: x for name, x in book["keys"].items() if not key or name == key or name.startswith(f"{key}.")}
    return _table(entries, translate("recipe keys")) if entries else None


def _table(entries: Mapping[str, Entry], title: str) -> Table:
    columns = (translate("key"), translate("default"), translate("what it means"))
    table = Table(*columns, title=title, title_justify="left")
    table.columns[-1].overflow = "fold"  # Chinese has no spaces to break lines at
    if not entries:
        table.add_row("", "", translate("it has no settings"))
    for name, entry in entries.items():
        table.add_row(name, escape(translate(entry["default"])), escape(translate(entry["help"])))
    return table


def _translated(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_translated(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: translate(x) if key == "description" and isinstance(x, str) else _translated(x) for key, x in schema.items()
    }
