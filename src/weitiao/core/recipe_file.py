"""A recipe file: YAML, dotted overrides, and the line of each key."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from weitiao.core.command import command
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.recipe_errors import Key
from weitiao.core.recipe_sections import DEFAULT_COMPONENTS
from weitiao.core.recipe_yaml import read_file, read_yaml


def read_plain(path: str | Path, overrides: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[Key, int]]:
    """A recipe file's plain values with the overrides set, and the line of each key.

    Raises:
        RecipeError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(
            "there is no recipe {path}. `{command} init --list` lists those that ship with weitiao.",
            path=path,
            command=command(),
        )
    plain, lines = read_yaml(read_file(path), path)
    if plain is None:
        raise RecipeError(
            "{path}: this recipe is empty. `{command} init` writes one for your data.", path=path, command=command()
        )
    if not isinstance(plain, dict):
        raise RecipeError(
            "{path}: a recipe is a list of `key: value` lines; this file contains {type}.",
            path=path,
            type=type(plain).__name__,
        )
    _check_repetition(overrides)
    for override in overrides:
        _set(plain, override)
    return plain, lines


def _check_repetition(overrides: Sequence[str]) -> None:
    """Refuse two overrides of one key: one of them would be lost.

    Raises:
        RecipeError: naming both.
    """
    first: dict[Key, str] = {}
    for override in overrides:
        if (earlier := first.setdefault(override_key(override), override)) != override:
            raise RecipeError(
                "on the command line: {first} and {second} set the same key. Write one of them.",
                first=earlier,
                second=override,
            )


def override_key(override: str) -> Key:
    """The key that an override sets."""
    return tuple(int(key) if key.isdecimal() else key for key in override.partition("=")[0].split("."))


def _set(plain: dict[str, Any], override: str) -> None:
    """Set one key, as on the command line: method.rank=32.

    Raises:
        RecipeError: it is not written key=value, or names an element that is not there.
    """
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(
            "an override is written key=value, for example method.rank=32; this one is {override!r}.", override=override
        )
    value, _ = read_yaml(text, Message("override {override!r}", override=override))
    set_key(plain, dotted, value, override)


def set_key(plain: dict[str, Any], dotted: str, value: Any, override: str = "") -> None:
    """Set one dotted key. `method: lora` becomes {name: lora} when a setting below it is given.

    Args:
        override: as the user wrote it, for messages.

    Raises:
        RecipeError: it names an element that is not there.
    """
    override = override or dotted
    keys, node = dotted.split("."), plain
    for key in keys[:-1]:
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise RecipeError(
                    "override {override!r}: there is no element {key}; there are {n}, counted from 0.",
                    override=override,
                    key=key,
                    n=len(node),
                )
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
        node[keys[-1]] = value
    except (TypeError, IndexError):
        raise RecipeError("override {override!r} cannot be read.", override=override) from None


def written_at(key: Key, name: str, lines: dict[Key, int], overridden: Collection[Key]) -> Message:
    """Where a key was written: on the command line, or a file and line (of the nearest key above that is in the file)."""
    prefixes = [key[:n] for n in range(len(key), 0, -1)]
    if any(prefix in overridden for prefix in prefixes):
        return Message("on the command line")
    line = next((lines[prefix] for prefix in prefixes if prefix in lines), None)
    return Message("{file}, line {line}", file=name, line=line) if line else Message("{file}", file=name)
