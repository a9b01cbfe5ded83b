"""The source tree as a graph of imports: modules, the folders that hold them, and how deep the imports go."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2] / "src" / "weitiao"
FILES = sorted(ROOT.rglob("*.py"))
Graph = dict[str, set[str]]
PUBLIC_API = ("api", "methods", "objectives", "optimizers")  # with __init__ what users import, one unit


@cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """src/weitiao/core/run.py -> weitiao.core.run"""
    return ".".join(("weitiao", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports_in(node: ast.AST) -> Iterator[str]:
    """Our own modules that a piece of code imports, anywhere in it."""
    for x in ast.walk(node):
        if isinstance(x, ast.ImportFrom):
            assert not x.level, f"line {x.lineno}: relative import"
            module = x.module or ""
            if module.split(".")[0] == "weitiao":
                for alias in x.names:  # `from weitiao.core import run` imports the module weitiao.core.run
                    submodule = f"{module}.{alias.name}"
                    yield submodule if submodule in MODULES else module
        elif isinstance(x, ast.Import):
            yield from (alias.name for alias in x.names if alias.name.split(".")[0] == "weitiao")


def unit_of(module: str) -> str:
    """A module's file or folder at the top level: weitiao.core.run -> core; weitiao, weitiao.api -> __init__"""
    name = module.split(".")[1] if "." in module else "__init__"
    return "__init__" if name in PUBLIC_API else "cli" if name == "__main__" else name


@cache
def import_graph() -> Graph:
    return {module: set(imports_in(syntax_tree(path))) for module, path in MODULES.items()}


def unit_graph(package: str) -> Graph:
    """Imports between the files and folders directly inside a package; its own __init__ counts at the top level only."""

    def unit(module: str) -> str | None:
        if package == "weitiao":
            return unit_of(module)
        return module.removeprefix(f"{package}.").split(".")[0] if module.startswith(f"{package}.") else None

    units: Graph = {}
    for module, targets in import_graph().items():
        if source := unit(module):
            units.setdefault(source, set()).update(x for x in map(unit, targets) if x not in (None, source))
    return units


def levels(graph: Graph) -> dict[str, int]:
    """1 for what imports nothing, else one more than the highest level it imports.

    Raises:
        AssertionError: there is an import cycle.
    """
    level: dict[str, int] = {}

    def visit(node: str, path: tuple[str, ...]) -> int:
        assert node not in path, f"import cycle: {' -> '.join((*path, node))}"
        if node not in level:
            level[node] = 1 + max((visit(x, (*path, node)) for x in sorted(graph.get(node, ()))), default=0)
        return level[node]

    for node in sorted(graph):
        visit(node, ())
    return level


def public_names(node: ast.ClassDef) -> set[str]:
    """Fields, class variables, methods and properties that a class defines itself, and what __init__ sets on self."""
    names: set[str] = set()
    for x in node.body:
        if isinstance(x, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(x.name)
        elif isinstance(x, (ast.Assign, ast.AnnAssign)):
            names.update(t.id for t in assigned(x) if isinstance(t, ast.Name))
        if isinstance(x, ast.FunctionDef) and x.name == "__init__":
            targets = [t for y in ast.walk(x) if isinstance(y, (ast.Assign, ast.AnnAssign)) for t in assigned(y)]
            attributes = [t for t in targets if isinstance(t, ast.Attribute)]
            names.update(t.attr for t in attributes if isinstance(t.value, ast.Name) and t.value.id == "self")
    return {x for x in names if not x.startswith("_")} - {"model_config"}


def assigned(node: ast.Assign | ast.AnnAssign) -> list[ast.AST]:
    """The targets of an assignment, those of `a, b = ...` one by one."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [y for x in targets for y in (x.elts if isinstance(x, ast.Tuple) else [x])]


def declared_names(tree: ast.Module, public: bool = False) -> Iterator[str]:
    """Names that a file gives, without leading underscores: to functions, classes, arguments and variables.

    Args:
        public: only those that another file can use: of its top level and of its public classes.
    """
    if public:
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from (node.name, *public_names(node))
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
                yield node.name
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                yield from (x.id for x in assigned(node) if isinstance(x, ast.Name) and not x.id.startswith("_"))
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id.strip("_")
        elif isinstance(node, ast.arg):
            yield node.arg.strip("_")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name.strip("_")
