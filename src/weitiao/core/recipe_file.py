"""A recipe file -> a Recipe, with errors in the reader's words: file, line, key, the nearest known key."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import DEFAULT_PARTS, Evaluate, Recipe, Replay, Source, Train
from weitiao.core.registry import find, nearest


def read_recipe(path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """A recipe file and dotted overrides ("method.rank=32") as a Recipe.

    Raises:
        RecipeError: naming the file, the line, the key and the nearest known key.
    """
    plain, lines = read_plain(path, overrides)
    typed = {keys_of(override) for override in overrides}
    return make_recipe(plain, str(path), lines, typed)


def read_plain(path: str | Path, overrides: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[tuple, int]]:
    """A recipe file's plain values, overrides set, and the line where each key stands.

    Raises:
        RecipeError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"there is no recipe {path}. Recipes that ship with weitiao lie in recipes/.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        plain = yaml.safe_load(text)
        lines = _lines(yaml.compose(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{path}{at}: not readable as YAML: {problem}") from None
    if not isinstance(plain, dict):
        raise RecipeError(f"{path}: a recipe is a list of `key: value` lines; this file holds {type(plain).__name__}.")
    for override in overrides:
        _set(plain, override)
    return plain, lines


def make_recipe(
    plain: dict[str, Any], name: str = "recipe", lines: dict[tuple, int] | None = None, typed: Collection[tuple] = ()
) -> Recipe:
    """A Recipe from plain values, with errors in the reader's words.

    Args:
        name: of the file.
        lines: where each key stands in it.
        typed: keys that were given on the command line.
    """
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        said = [_say(error, plain, lambda place: _where(place, name, lines or {}, typed)) for error in error.errors()]
        raise RecipeError("\n".join(said)) from None
    except RecipeError as error:
        raise RecipeError(f"{name}: {error}") from None


def keys_of(override: str) -> tuple:
    """The key that an override sets."""
    return tuple(int(key) if key.isdigit() else key for key in override.partition("=")[0].split("."))


def _set(plain: dict[str, Any], override: str) -> None:
    """Set one dotted key. `method: lora` becomes {name: lora} when a setting below it is given."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"an override is written key=value, for example method.rank=32; this one is {override!r}.")
    keys, here = dotted.split("."), plain
    for key in keys[:-1]:
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise RecipeError(f"the override {override!r}: there is no element {key}; there are {len(here)}, from 0.")
            if isinstance(here[int(key)], str):
                here[int(key)] = {"path": here[int(key)]}
            here = here[int(key)]
            continue
        below = here.get(key, DEFAULT_PARTS.get(key))
        if isinstance(below, str):
            below = {"path": below} if key in ("data", "validation") else {"name": below}
        here[key] = below if isinstance(below, (dict, list)) else {}
        here = here[key]
    try:
        here[keys[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, TypeError, IndexError):
        raise RecipeError(f"the override {override!r} cannot be read.") from None


def _lines(node: yaml.Node | None, at: tuple = ()) -> dict[tuple, int]:
    """Where each key stands in the file: path of keys -> line, counted from 1."""
    found: dict[tuple, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            found[(*at, key.value)] = key.start_mark.line + 1
            found |= _lines(value, (*at, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found[(*at, i)] = value.start_mark.line + 1
            found |= _lines(value, (*at, i))
    return found


def _where(place: list, name: str, lines: dict[tuple, int], typed: Collection[tuple]) -> str:
    """Where a key was written: on the command line, or file and line (of the nearest key above that stands there)."""
    above = [tuple(place[:n]) for n in range(len(place), 0, -1)]
    if any(key in typed for key in above):
        return "on the command line"
    line = next((lines[key] for key in above if key in lines), None)
    return f"{name}, line {line}" if line else name


def _say(error: Any, plain: dict[str, Any], where_is: Callable[[list], str]) -> str:
    """One pydantic complaint in plain words: file, line, key, what is wrong, what there is."""
    place = [x for x in error["loc"] if not (isinstance(x, str) and ("[" in x or x in ("float", "int")))]
    place = place[:1] + place[2:] if place[:1] == ["validation"] else place  # which of the two forms it is
    for given, *sources in ((plain, "data"), (plain, "validation"), (plain.get("evaluate"), "evaluate", "data")):
        alone = isinstance(given, dict) and not isinstance(given.get(sources[-1]), list)
        if alone and place[: len(sources) + 1] == [*sources, 0]:
            place = [*sources, *place[len(sources) + 1 :]]  # written as one mapping
    inner = error.get("ctx", {}).get("key") if error["type"] == "part" else None
    if inner:
        place, error = [*place, inner], {**error, "input": error["ctx"]["given"]}
    key, where = ".".join(str(x) for x in place), where_is(place)
    if error["type"] == "extra_forbidden":
        known = sorted(_fields_at(place[:-1], plain))
        return f"{where}: unknown key {key!r}.{nearest(str(place[-1]), known)} Keys here are: {', '.join(known)}."
    if error["type"] == "missing":
        return f"{where}: {key} is missing. {_fields_at(place[:-1], plain)[place[-1]].description or ''}".rstrip()
    words = error["msg"].removeprefix("Value error, ")
    told = "here are" in words or "ettings are" in words or isinstance(error["input"], (dict, list)) or "given:" in words
    return f"{where}: {key}: {words}" + ("" if told else f" (given: {error['input']!r}).")


def _fields_at(place: list, plain: dict[str, Any]) -> dict[str, FieldInfo]:
    here, value = Recipe, plain
    for key in place:
        value = value.get(key, {}) if isinstance(value, dict) else value[key] if isinstance(value, list) else {}
        if key in ("method", "objective", "optimizer") and isinstance(value, dict) and "name" in value:
            here = find(key, value["name"])
        elif isinstance(key, str):
            here = {"data": Source, "validation": Source, "replay": Replay, "train": Train, "evaluate": Evaluate}.get(
                key, here
            )
    return here.model_fields
