"""The architecture, as tests: who may import whom, how long a file is, what every part says."""

import ast
from pathlib import Path

import pytest

from weitiao.core.registry import FOLDERS, find, find_module, folder_of, names

ROOT = Path(__file__).parent.parent / "src" / "weitiao"
FILES = sorted(ROOT.rglob("*.py"))
STATIONS = ("plan", "data", "model", "objective", "train", "evaluate", "deploy")
CLASSES = ("method", "objective", "optimizer", "clip", "metric")
FACES = ("cli.py", "use.py", "verb.py")
MAY = {
    "core": {"core"},
    **{station: {"core", station} for station in STATIONS},
    "learnt": {"core", "learnt", "model", "train", "deploy"},
    "pipeline": {"core", "learnt", "pipeline", *STATIONS},
    "opened": {"core", "opened", "learnt", "pipeline", *STATIONS},
    "several": {"core", "learnt", "opened", "several", "pipeline", *STATIONS},
    "predict": {"core", "opened", *STATIONS},
    "bench_machine": {"core", "model"},
    "cli": {"bench_machine", "core", "pipeline", "opened", "multirun", "cli", "talk", "use", "verb"},
    "use": {"core", "talk", "verb"},
    "verb": {"core", "model", "pipeline", "opened", "several", "predict"},
    "talk": {"core"},
    "multirun": {"core", "pipeline", "multirun"},
    "__main__": {"cli"},
    "__init__": set(),
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> list[tuple[str, ast.AST]]:
    """Our own modules that a file imports, anywhere in it, as (dotted name, node)."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            if (node.module or "").split(".")[0] == "weitiao":
                if node.module in ("weitiao", "weitiao.core", "weitiao.plan", "weitiao.train", "weitiao.model"):
                    found += [(f"{node.module}.{alias.name}", node) for alias in node.names]
                else:
                    found.append((str(node.module), node))
        elif (
            isinstance(node, ast.Constant)
            and str(node.value).startswith("weitiao.")
            and path.name in ("cli.py", "use.py", "verb.py")
        ):
            found.append((str(node.value), node))  # the command line imports late, by name
        elif isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names if alias.name.split(".")[0] == "weitiao"]
    return found


def test_enough_files_are_seen() -> None:
    assert len(FILES) > 50


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    allowed = MAY[room(path)]
    for module, _ in imported(path):
        there = module.split(".")[1] if "." in module else ""
        assert there in allowed or there == "__version__", f"{path}: {room(path)} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_our_own_modules_are_imported_at_the_head(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    assert not (node.module or "").startswith("weitiao"), f"{path}: hidden import in {function.name}"


@pytest.mark.parametrize("kind", FOLDERS)
def test_no_part_imports_another(kind: str) -> None:
    parts = {f"{FOLDERS[kind]}.{name}" for name in names(kind)}
    assert parts, f"{kind}: no parts were found"
    for name in names(kind):
        mine = {module for module, _ in imported(folder_of(kind) / f"{name}.py")}
        assert not mine & parts, f"{kind} {name} imports another part"


def test_no_rings() -> None:
    graph = {".".join(("weitiao", *p.relative_to(ROOT).with_suffix("").parts)): {m for m, _ in imported(p)} for p in FILES}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a ring: {' -> '.join((*path, module))}"
        if module in done or module not in graph:
            return
        for below in sorted(graph[module]):
            walk(below, (*path, module))
        done.add(module)

    for module in sorted(graph):
        walk(module, ())
    assert len(done) == len(graph)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = 120 if path.name == "loop.py" else 400
    assert text.count("\n") <= limit, f"{path} has more than {limit} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is longer than 60 lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            assert len(arguments) <= 10, f"{path}: {node.name} has {len(arguments)} arguments"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CLASSES for name in names(kind)])
def test_every_part_explains_itself(kind: str, name: str) -> None:
    part = find(kind, name)
    assert part.__doc__ and part.model_config["frozen"] and part.model_config["extra"] == "forbid"
    assert find_module(kind, name).__doc__
    for field, info in part.model_fields.items():
        assert info.description, f"{kind} {name}: {field} has no words under it"


@pytest.mark.parametrize("name", ["Recipe", "Source", "Replay", "Train", "Evaluate"])
def test_every_recipe_key_explains_itself(name: str) -> None:
    from weitiao.core import recipe

    for field, info in getattr(recipe, name).model_fields.items():
        assert info.description or field in ("train", "evaluate"), f"{name}.{field} has no words under it"
