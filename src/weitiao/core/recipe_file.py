"""A recipe file -> a Recipe, with errors that name the file, the line, the key and the nearest known key."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message, joined
from weitiao.core.recipe import DEFAULT_COMPONENTS, Recipe
from weitiao.core.recipe_errors import Key, explain


def read_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe file and dotted overrides ("method.rank=32") as a Recipe.

    Raises:
        RecipeError: naming the file, the line, the key and the nearest known key.
    """
    plain, lines = read_plain(path, overrides)
    return make_recipe(plain, str(path), lines, {override_key(override) for override in overrides})


def read_plain(path: str | Path, overrides: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[Key, int]]:
    """A recipe file's plain values with the overrides set, and the line of each key.

    Raises:
        RecipeError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError("there is no recipe {path}. Recipes that ship with weitiao are in recipes/.", path=path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        plain = yaml.safe_load(text)
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or str(error)
        if mark := getattr(error, "problem_mark", None):
            template = "{path}, line {line}: not readable as YAML: {problem}"
            raise RecipeError(template, path=path, line=mark.line + 1, problem=problem) from None
        raise RecipeError("{path}: not readable as YAML: {problem}", path=path, problem=problem) from None
    if not isinstance(plain, dict):
        template = "{path}: a recipe is a list of `key: value` lines; this file contains {type}."
        raise RecipeError(template, path=path, type=type(plain).__name__)
    for override in overrides:
        _set(plain, override)
    return plain, lines


def make_recipe(
    plain: dict[str, Any], name: str = "recipe", lines: dict[Key, int] | None = None, overridden: Collection[Key] = ()
) -> Recipe:
    """A Recipe from plain values.

    Args:
        name: of the file.
        lines: the line of each key in it.
        overridden: keys that were given on the command line.

    Raises:
        RecipeError: a line for each key that is wrong.
    """
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        messages = explain(error.errors(include_url=False), plain, lambda key: _where(key, name, lines or {}, overridden))
        raise RecipeError(joined("\n", messages)) from None
    except RecipeError as error:
        raise RecipeError("{file}: {problem}", file=name, problem=error.message) from None


def override_key(override: str) -> Key:
    """The key that an override sets."""
    return tuple(int(key) if key.isdigit() else key for key in override.partition("=")[0].split("."))


def _set(plain: dict[str, Any], override: str) -> None:
    """Set one dotted key. `method: lora` becomes {name: lora} when a setting below it is given."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        template = "an override is written key=value, for example method.rank=32; this one is {override!r}."
        raise RecipeError(template, override=override)
    keys, node = dotted.split("."), plain
    for key in keys[:-1]:
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                template = "override {override!r}: there is no element {key}; there are {n}, counted from 0."
                raise RecipeError(template, override=override, key=key, n=len(node))
            if isinstance(node[int(key)], str):
                node[int(key)] = {"path": node[int(key)]}
            node = node[int(key)]
            continue
        child = node.get(key, DEFAULT_COMPONENTS.get(key))
        if isinstance(child, str):
            child = {"path": child} if key in ("data", "validation") else {"name": child}
        node[key] = child if isinstance(child, (dict, list)) else {}
        node = node[key]
    try:
        node[keys[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, TypeError, IndexError):
        raise RecipeError("override {override!r} cannot be read.", override=override) from None


def _lines(node: yaml.Node | None, parent: Key = ()) -> dict[Key, int]:
    """Path of keys -> its line in the file, counted from 1."""
    lines: dict[Key, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*parent, key.value)] = key.start_mark.line + 1
            lines |= _lines(value, (*parent, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            lines[(*parent, i)] = value.start_mark.line + 1
            lines |= _lines(value, (*parent, i))
    return lines


def _where(key: Key, name: str, lines: dict[Key, int], overridden: Collection[Key]) -> Message:
    """Where a key was written: on the command line, or a file and line (of the nearest key above that is in the file)."""
    prefixes = [key[:n] for n in range(len(key), 0, -1)]
    if any(prefix in overridden for prefix in prefixes):
        return Message("on the command line")
    line = next((lines[prefix] for prefix in prefixes if prefix in lines), None)
    return Message("{file}, line {line}", file=name, line=line) if line else Message("{file}", file=name)
