"""The architecture, as tests: who may import whom, how deep and how large things are, what every part documents."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support.source_tree import (
    FILES,
    MODULES,
    ROOT,
    declared_names,
    import_graph,
    imports_in,
    levels,
    module_name,
    public_names,
    syntax_tree,
    unit_graph,
    unit_of,
)
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_errors import SECTIONS
from weitiao.core.registry import FOLDERS, find, find_module, folder_of, names

STATIONS = ("plan", "data", "model", "objective", "train", "evaluate", "deploy")
FACES = ("cli", "__init__")  # they import ours inside functions, so that `--help` and `import weitiao` are quick
MAY_IMPORT = {
    "core": {"core"},
    **{station: {"core", station} for station in STATIONS},
    "pipeline": {"core", "pipeline", *STATIONS},
    "multirun": {"core", "pipeline", "multirun"},
    "cli": {"core", "pipeline", "multirun", "cli", "__init__"},
    "__init__": {"core", "pipeline", "multirun", "__init__"},
}
VAGUE = """anew asked begun below doubt ear fold found given halves heard hears here kept known learnt made many mine
    often once place placed places put said seen shown skew some spelt stand stands taken there thing things told trouble
    wanted way ways wishes words"""
VAGUE_NAMES = frozenset(VAGUE.split())  # each could name anything: no public name and no recipe key may be one
VAGUE_SHARE = 0.005
IGNORE, MAX_IGNORED = "pyright: ignore", 40
LIMITS = {"weitiao": (14, 6), "weitiao.model": (8, 6)}  # units, levels
TOO_LARGE = {  # public names of classes that have more than 20; may only shrink
    "Train": 25,
    "Recipe": 23,
}
EXPLAINED = ("method", "objective", "optimizer", "clip", "metric")
TESTS = Path(__file__).parent


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- imports ----------------------------------------------------------------------------------------------------------


def test_source_files_found() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_follow_the_layers(path: Path) -> None:
    unit = unit_of(module_name(path))
    for module in imports_in(syntax_tree(path)):
        assert unit_of(module) in MAY_IMPORT[unit], f"{path}: {unit} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_own_modules_imported_at_the_head(path: Path) -> None:
    """Except in faces, so that the layers can be read off the heads of the files."""
    if unit_of(module_name(path)) in FACES:
        return
    for function in ast.walk(syntax_tree(path)):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert not list(imports_in(function)), f"{path}: import inside {function.name}"


@pytest.mark.parametrize("path", [x for x in FILES if x != ROOT / "core" / "registry.py"], ids=relative)
def test_no_own_module_imported_by_string(path: Path) -> None:
    """A name in a string is seen by no type checker and by none of these tests."""
    strings = {x.value for x in ast.walk(syntax_tree(path)) if isinstance(x, ast.Constant) and isinstance(x.value, str)}
    assert not strings & set(MODULES) - {"weitiao"}, path


@pytest.mark.parametrize("kind", FOLDERS)
def test_no_part_imports_another(kind: str) -> None:
    parts = {f"{FOLDERS[kind]}.{name}" for name in names(kind)}
    assert parts, f"{kind}: no parts found"
    for name in names(kind):
        imported = set(imports_in(syntax_tree(folder_of(kind) / f"{name}.py")))
        assert not imported & parts, f"{kind} {name} imports another part"


def test_no_import_cycle() -> None:
    assert len(levels(import_graph())) == len(FILES)


@pytest.mark.parametrize("package", [f"weitiao.{x.name}" for x in ROOT.iterdir() if (x / "__init__.py").exists()])
def test_no_import_cycle_between_folders(package: str) -> None:
    levels(unit_graph(package))


@pytest.mark.parametrize("package", LIMITS)
def test_number_of_units_and_levels(package: str) -> None:
    """A tree that one can draw from memory."""
    level, (most_units, most_levels) = levels(unit_graph(package)), LIMITS[package]
    assert len(level) <= most_units, f"{package}: {sorted(level)}"
    assert max(level.values()) <= most_levels, f"{package}: {level}"


@pytest.mark.parametrize("module", ["weitiao", "weitiao.core.run"])
def test_import_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(x in sys.modules for x in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, f"import {module} imports torch"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: str(p.relative_to(TESTS)))
def test_no_test_imports_a_test(path: Path) -> None:
    """What tests share is in tests/support; conftest.py holds fixtures and hooks only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            last = module.split(".")[-1]
            assert not last.startswith("test_") and last != "conftest", f"{path} imports {module}"


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_length_of_files_and_functions(path: Path) -> None:
    limit = 120 if path == ROOT / "train" / "loop.py" else 400
    assert path.read_text(encoding="utf-8").count("\n") <= limit, f"{path} has more than {limit} lines"
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is longer than 60 lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(arguments) <= 10, f"{path}: {node.name} has {len(arguments)} arguments"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_public_names_per_class(path: Path) -> None:
    for node in ast.walk(syntax_tree(path)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            public, limit = public_names(node), TOO_LARGE.get(node.name, 20)
            assert len(public) <= limit, f"{path}: {node.name} has {len(public)} public names: {sorted(public)}"


# -- documentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_has_a_docstring(path: Path) -> None:
    assert not path.read_text(encoding="utf-8") or ast.get_docstring(syntax_tree(path)), f"{path} has no docstring"
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in EXPLAINED for name in names(kind)])
def test_every_part_is_documented(kind: str, name: str) -> None:
    part = find(kind, name)
    assert part.__doc__ and part.model_config["frozen"] and part.model_config["extra"] == "forbid"
    assert find_module(kind, name).__doc__
    for field, info in part.model_fields.items():
        assert info.description, f"{kind} {name}: {field} has no description"


@pytest.mark.parametrize("name", ["Recipe", "Source", "Replay", "Train", "Evaluate"])
def test_every_recipe_key_is_documented(name: str) -> None:
    from weitiao.core import recipe, recipe_sections

    section = recipe.Recipe if name == "Recipe" else getattr(recipe_sections, name)
    for field, info in section.model_fields.items():
        assert info.description or field in ("train", "evaluate"), f"{name}.{field} has no description"


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_vague_public_name(path: Path) -> None:
    vague = sorted({x for x in declared_names(syntax_tree(path), public=True) if x in VAGUE_NAMES})
    assert not vague, f"{path}: {vague} could name anything: use the field's term"


@pytest.mark.parametrize("kind", EXPLAINED)
def test_no_vague_setting_of_a_part(kind: str) -> None:
    keys = {key for name in names(kind) for key in (name, *find(kind, name).model_fields)}
    assert not keys & VAGUE_NAMES


def test_no_vague_recipe_key() -> None:
    keys = {key for section in (Recipe, *SECTIONS.values()) for key in section.model_fields}
    assert not keys & VAGUE_NAMES


def test_share_of_vague_names() -> None:
    """Of all names that the source gives to functions, classes, arguments and variables."""
    declared = [(path, name) for path in FILES for name in declared_names(syntax_tree(path))]
    vague = Counter(relative(path) for path, name in declared if name in VAGUE_NAMES)
    share = sum(vague.values()) / len(declared)
    assert share <= VAGUE_SHARE, f"{share:.2%} of {len(declared)} names are vague, most in {vague.most_common(10)}"


# -- types ------------------------------------------------------------------------------------------------------------


def test_type_checker_is_rarely_silenced() -> None:
    """Each comment names the rule that it silences."""
    ignored = [(path, line) for path in FILES for line in path.read_text(encoding="utf-8").split("\n") if IGNORE in line]
    assert len(ignored) <= MAX_IGNORED, f"{len(ignored)} lines with {IGNORE!r}, at most {MAX_IGNORED} are allowed"
    bare = [f"{relative(path)}: {line.strip()}" for path, line in ignored if f"{IGNORE}[" not in line]
    assert not bare, f"without a rule: {bare}"
