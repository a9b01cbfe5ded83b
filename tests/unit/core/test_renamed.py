"""Old names in recipes: each is refused as any unknown key, value or component, and the hint gives the new name."""

from typing import Any

import pytest

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import FOLDERS, find, names
from weitiao.core.renamed import RENAMED_COMPONENTS, RENAMED_KEYS, RENAMED_VALUES

KEYS = [(scope, old, new) for scope, table in RENAMED_KEYS.items() for old, new in table.items()]
VALUES = [(key, old, new) for key, table in RENAMED_VALUES.items() for old, new in table.items()]
COMPONENTS = [(kind, old, new) for kind, table in RENAMED_COMPONENTS.items() for old, new in table.items()]
CLIP = ("train", "max_grad_norm")
REQUIRED: dict[str, Any] = {  # settings without which a section or component is incomplete
    "objective.multi_task": {"tasks": {"a": "classification"}},
    "replay": {"path": "a.jsonl"},
}


def location(scope: str) -> tuple[str, ...]:
    """Where a section or a component is written in a recipe."""
    kind, _, name = scope.partition(".")
    if kind == "clip":
        return CLIP
    if kind == "regularizer":
        return ("regularizers",)
    return (kind,) if kind in FOLDERS else tuple(x for x in (kind, name) if x)


def error_of(path: tuple[str, ...], value: Any) -> str:
    plain: dict[str, Any] = {"base": "x", "data": "a.jsonl", "out": "y"}
    section = plain
    for key in path[:-1]:
        section = section.setdefault(key, {})
    if path:
        section[path[-1]] = value
    else:
        plain |= value
    with pytest.raises(RecipeError) as error:
        make_recipe(plain)
    return str(error.value)


def settings_of(scope: str) -> dict[str, Any]:
    kind, _, name = scope.partition(".")
    return {**({"name": name} if kind in FOLDERS else {}), **REQUIRED.get(scope, {})}


@pytest.mark.parametrize(("scope", "old", "new"), KEYS)
def test_old_key_refused_with_new_name(scope: str, old: str, new: str) -> None:
    message = error_of(location(scope), {**settings_of(scope), old: "auto"})
    dotted = ".".join((*location(scope), old))
    assert f"unknown key {dotted!r}. Did you mean {new!r}? Keys here are: " in message.replace(
        "regularizers.0.", "regularizers."
    )


@pytest.mark.parametrize(("key", "old", "new"), VALUES)
def test_old_value_refused_with_new_value(key: str, old: str, new: str) -> None:
    scope, _, last = key.rpartition(".")
    message = error_of(location(scope), {**settings_of(scope), last: old})
    assert f"not {old!r}. Did you mean {new!r}?" in message


@pytest.mark.parametrize(("kind", "old", "new"), COMPONENTS)
def test_old_component_refused_with_new_name(kind: str, old: str, new: str) -> None:
    assert f"there is no {kind} called {old!r}. Did you mean {new!r}?" in error_of(location(f"{kind}.{old}"), {"name": old})


def test_new_names_exist() -> None:
    for kind, _, new in COMPONENTS:
        assert new in names(kind)
    for scope, old, new in KEYS:
        kind, _, name = scope.partition(".")
        if kind in FOLDERS:
            assert new in find(kind, name).model_fields and old not in find(kind, name).model_fields
