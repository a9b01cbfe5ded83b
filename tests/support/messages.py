"""Every sentence that a user can read, collected from the source: what locale/zh.json must translate.

python tests/support/messages.py            the templates that have no 中文 yet, as JSON
python tests/support/messages.py --unused   entries of the catalogue that no source has
"""

import ast
import json
import os
import string
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2] / "src" / "weitiao"
CATALOGUE = ROOT / "locale" / "zh.json"
CALLS = {"Message", "translate", "invalid", "busy", "usage_error"}  # their first argument is a template
ERRORS = {
    "InvalidValue",
    "ExcludedRow",
    "Interrupted",
    "TooManyBadRows",
}  # and so is that of everything called ...Error in core/errors.py


def error_names() -> set[str]:
    """Names of the exceptions that carry a template."""
    tree = ast.parse((ROOT / "core" / "errors.py").read_text(encoding="utf-8"))
    return ERRORS | {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def source_files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def calls_of(tree: ast.AST, names: set[str]) -> Iterator[ast.Call]:
    """Calls of a function or class by one of the names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in names:
                yield node


def constants_of(node: ast.expr, assigned: Mapping[str, list[ast.expr]]) -> Iterator[str]:
    """The string constants that an argument can be: itself, the branches of `a if x else b`, or what a name stands for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from constants_of(node.body, assigned)
        yield from constants_of(node.orelse, assigned)
    elif isinstance(node, ast.Name):
        for value in assigned.get(node.id, ()):
            yield from constants_of(value, {})


def assigned_constants(tree: ast.AST) -> dict[str, list[ast.expr]]:
    """Name -> what is assigned to it anywhere in the file: `text = "..."`, then `Message(text, ...)`."""
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    assigned.setdefault(target.id, []).append(node.value)
    return assigned


def templates() -> dict[str, str]:
    """Template -> the file and line that raises it first."""
    found: dict[str, str] = {}
    names = CALLS | error_names()
    for path in source_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = str(path.relative_to(ROOT))
        assigned = assigned_constants(tree)
        for call in calls_of(tree, names):
            for text in constants_of(call.args[0], assigned) if call.args else ():
                if has_words(text):
                    found.setdefault(text, f"{place}:{call.lineno}")
    return found


def field_help() -> dict[str, str]:
    """Help of every recipe key and of every setting of a component, as pydantic reads it -> where it is."""
    from weitiao.core import recipe
    from weitiao.core.registry import Component, Settings

    found: dict[str, str] = {}
    _import_components()
    for section in _subclasses(Settings):
        if not section.__module__.startswith("weitiao."):
            continue
        for name, field in section.model_fields.items():
            if field.description:
                found.setdefault(field.description, f"{section.__module__}.{section.__name__}.{name}")
        contract = section.__module__.startswith("weitiao.core.")
        if issubclass(section, Component) and section.__doc__ and not contract and not section.__name__.startswith("_"):
            found.setdefault(section.__doc__.strip().split("\n\n")[0], f"{section.__module__}.{section.__name__}")
    assert len(recipe.Recipe.model_fields) > 10
    return found


def command_help() -> dict[str, str]:
    """Help of every command, argument and option -> the command."""
    from typer.main import get_command

    from weitiao.cli.app import app

    found: dict[str, str] = {}

    def collect(command: Any, name: str) -> None:
        for text in (command.help, *(getattr(x, "help", None) for x in command.params)):
            if text:
                found.setdefault(text, name)
        for child in getattr(command, "commands", {}).values():
            collect(child, f"{name} {child.name}")

    language, os.environ["WEITIAO_LANG"] = os.environ.get("WEITIAO_LANG"), "en"  # help is translated when it is built
    try:
        collect(get_command(app), "weitiao")
    finally:
        os.environ.pop("WEITIAO_LANG") if language is None else os.environ.update(WEITIAO_LANG=language)
    return found


def has_words(template: str) -> bool:
    """Whether there is anything to translate outside the fields: not in "{path}: {reason}"."""
    return any(x.isalpha() for text, *_ in string.Formatter().parse(template) for x in text)


def fields_of(template: str) -> set[str]:
    """Names of the fields of a template.

    >>> sorted(fields_of("{n:,} rows in {path!r}"))
    ['n', 'path']
    """
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def catalogue() -> dict[str, str]:
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))


def _subclasses(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)


def _import_components() -> None:
    import importlib
    import pkgutil

    import weitiao

    for module in pkgutil.walk_packages(weitiao.__path__, "weitiao."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    every = {**templates(), **field_help(), **command_help()}
    have = catalogue()
    if "--unused" in sys.argv:
        print(json.dumps(sorted(have.keys() - every.keys()), ensure_ascii=False, indent=1))
    else:
        print(json.dumps({text: place for text, place in every.items() if text not in have}, ensure_ascii=False, indent=1))
