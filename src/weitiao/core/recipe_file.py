"""A recipe file: YAML, dotted overrides, and the line of each key."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from weitiao.core.command import command
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.recipe_errors import Key
from weitiao.core.recipe_sections import DEFAULT_COMPONENTS


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
    try:
        text = path.read_text(encoding="utf-8-sig")
        node = _compose(text)
        plain, lines = node and yaml.SafeLoader("").construct_document(node), _lines(node)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or str(error)
        if mark := getattr(error, "problem_mark", None):
            raise RecipeError(
                "{path}, line {line}: not readable as YAML: {problem}", path=path, line=mark.line + 1, problem=problem
            ) from None
        raise RecipeError("{path}: not readable as YAML: {problem}", path=path, problem=problem) from None
    if not isinstance(plain, dict):
        raise RecipeError(
            "{path}: a recipe is a list of `key: value` lines; this file contains {type}.",
            path=path,
            type=type(plain).__name__,
        )
    for override in overrides:
        _set(plain, override)
    return plain, lines


def _compose(text: str) -> yaml.Node | None:
    """The syntax tree, by libyaml, which is ten times as fast; errors are those of the Python parser, which are clearer."""
    try:
        return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return yaml.compose(text, Loader=yaml.SafeLoader)


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
    try:
        set_key(plain, dotted, yaml.safe_load(text), override)
    except yaml.YAMLError:
        raise RecipeError("override {override!r} cannot be read.", override=override) from None


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


def written_at(key: Key, name: str, lines: dict[Key, int], overridden: Collection[Key]) -> Message:
    """Where a key was written: on the command line, or a file and line (of the nearest key above that is in the file)."""
    prefixes = [key[:n] for n in range(len(key), 0, -1)]
    if any(prefix in overridden for prefix in prefixes):
        return Message("on the command line")
    line = next((lines[prefix] for prefix in prefixes if prefix in lines), None)
    return Message("{file}, line {line}", file=name, line=line) if line else Message("{file}", file=name)
