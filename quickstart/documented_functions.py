"""Functions of Python packages that stand alone, with the examples of their docstrings: what prepare_code.py is made of."""

import ast
import builtins
import doctest
import re
import symtable
import sys
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from inspect import cleandoc
from itertools import chain
from pathlib import Path

from weitiao.model.loading.packages import PackageFile

PACKAGES = (
    PackageFile("algorithms", "1.0.1", "algorithms/"),  # MIT
    PackageFile("boltons", "26.2.0", "boltons/"),  # BSD-3-Clause
    PackageFile("inflection", "0.5.1", "inflection/"),  # MIT
    PackageFile("labmath", "2.2.0", "labmath/"),  # MIT
    PackageFile("more-itertools", "11.2.1", "more_itertools/"),  # MIT
    PackageFile("networkx", "3.6.1", "networkx/", megabytes=3),  # BSD-3-Clause
    PackageFile("pydash", "8.1.0", "pydash/"),  # MIT
    PackageFile("sympy", "1.14.0", "sympy/", megabytes=7),  # BSD-3-Clause
    PackageFile("toolz", "1.2.0", "toolz/"),  # BSD-3-Clause
)
MAX_PROMPT, MAX_ANSWER, MAX_HELPERS = 1200, 800, 500  # characters
QUESTION = "Complete this Python function. Answer with the whole function.\n\n```python\n{code}\n```"
PROGRAM = """\
import doctest, sys
tests = doctest.DocTestParser().get_doctest({examples!r}, globals(), {name!r}, None, 0)
runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
assert runner.run(tests, out=lambda _: None).failed == 0, "a test failed"
assert not sys.modules.keys() & {packages!r}, "the package was imported"
"""


@dataclass(frozen=True)
class Function:
    """A documented function that stands alone."""

    file: str
    name: str
    head: str
    """Imports of the standard library, and constants of its file, that it needs; "" for none."""
    helpers: str
    """Other functions of its file, that it needs; "" for none."""
    signature: str
    """Its source up to the docstring."""
    body: str
    """Its source after the docstring."""
    docstring: str

    @property
    def package(self) -> str:
        """The package's name as it is imported."""
        return self.file.partition("/")[0]

    @property
    def code(self) -> str:
        """The function without its docstring, after imports and constants."""
        return f"{self.head}{self.signature}\n{self.body}"

    @cached_property
    def examples(self) -> list[doctest.Example]:
        """Of its docstring, without the imports of its own package."""
        try:
            parsed = doctest.DocTestParser().parse(self.docstring)
        except ValueError:  # inconsistent indentation
            return []
        return [x for x in parsed if isinstance(x, doctest.Example) and not imports_from(x.source, self.package)]

    @property
    def num_shown(self) -> int:
        """Examples up to the first with a result: they are shown."""
        return next((i + 1 for i, x in enumerate(self.examples) if x.want), 0)

    @property
    def question(self) -> str:
        """What the model reads."""
        shown = self.examples[: self.num_shown]
        text = "\n\n".join(x for x in (prose(self.docstring), "".join(map(as_text, shown)).strip()) if x)
        lines = "\n".join(f"    {x}".rstrip() for x in f'"""{text}'.splitlines())
        end = '\n    """' if "\n" in text else '"""'
        return QUESTION.format(code=f"{self.head}{self.helpers}{self.signature}\n{lines}{end}")

    @property
    def answer(self) -> str:
        """What it is to write."""
        return f"```python\n{self.code}\n```"

    @property
    def tests(self) -> str:
        """The program that follows an answer; "": there is nothing to test beyond what is shown."""
        if not any(x.want for x in self.examples[self.num_shown :]):
            return ""
        packages = sorted(x.path.strip("/") for x in PACKAGES)
        program = PROGRAM.format(examples="".join(map(as_text, self.examples)), name=self.name, packages=packages)
        return self.head + self.helpers + program

    @property
    def stubs(self) -> list[str]:
        """Functions that do nothing of what is wanted, and must not pass."""
        values = ["None", "args[0]", "[*args[0]][:99]", "0", "1", "[]", "''", "True", "False"]
        with suppress(SyntaxError, ValueError):
            values.append(repr(ast.literal_eval(self.examples[self.num_shown - 1].want)))
        return [f"def {self.name}(*args, **options):\n    return {x}\n" for x in values]


def functions_of(folder: Path) -> Iterator[Function]:
    """The functions at the top of a package's files."""
    for path in sorted(folder.rglob("*.py")):
        file = path.relative_to(folder.parent).as_posix()
        if not re.search(r"(^|/)(tests?|benchmarks?|conftest|testing)(/|\.py|_)", file):
            module = Module(path.read_text(encoding="utf-8"))
            for node in module.tree.body:
                if isinstance(node, ast.FunctionDef) and (made := function_of(node, module, file)):
                    yield made


class Module:
    """A file's source, and what it defines at its top."""

    def __init__(self, text: str) -> None:
        self.tree, self.lines = ast.parse(text), text.splitlines()
        self.imports = dict(chain.from_iterable(map(imports_of, self.tree.body)))
        self.definitions: dict[str, ast.stmt] = {}
        for x in self.tree.body:
            if isinstance(x, ast.FunctionDef) and not x.decorator_list:
                self.definitions[x.name] = x
            elif isinstance(x, ast.Assign) and isinstance(x.targets[0], ast.Name):
                self.definitions[x.targets[0].id] = x

    def needs(self, code: str, own: str) -> tuple[str, str] | None:
        """(imports and constants, other functions) that code needs, as source; None: it needs something else.

        Args:
            own: the name that the code defines.
        """
        imports, names, pending = set(), {own, *dir(builtins)}, [code]
        while pending:
            for name in globals_of(pending.pop()) - names:
                names.add(name)
                if name in self.definitions:
                    pending.append(ast.unparse(self.definitions[name]))
                elif is_standard(self.imports.get(name, "")):
                    imports.add(self.imports[name])
                else:
                    return None
        needed = [x for name, x in self.definitions.items() if name in names and name != own]
        constants = [ast.unparse(x) for x in needed if not isinstance(x, ast.FunctionDef)]
        functions = [ast.unparse(without_docstring(x)) for x in needed if isinstance(x, ast.FunctionDef)]
        blocks = ["\n".join(x) for x in (sorted(imports), constants) if x]
        return "".join(f"{x}\n\n" for x in blocks), "".join(f"{x}\n\n" for x in functions)


def function_of(node: ast.FunctionDef, module: Module, file: str) -> Function | None:
    """A function of a file; None: it is undocumented, long, or needs more than its file and the standard library."""
    docstring = ast.get_docstring(node)
    if node.decorator_list or not docstring or len(node.body) < 2 or node.body[0].end_lineno == node.body[1].lineno:
        return None
    lines, start, end = module.lines, node.body[0].lineno - 1, node.body[0].end_lineno
    signature = "\n".join(lines[node.lineno - 1 : start])
    body = "\n".join(lines[end : node.end_lineno]).strip("\n")
    needed = module.needs(f"{signature}\n{body}\n", node.name)
    if needed is None or not all(is_standard(x) for y in ast.walk(node) for _, x in imports_of(y)):
        return None
    head, helpers = needed
    function = Function(file, node.name, head, helpers, signature, body, docstring)
    fits = len(function.question) <= MAX_PROMPT and len(function.answer) <= MAX_ANSWER and len(helpers) <= MAX_HELPERS
    return function if fits and is_function(function.code) else None


def without_docstring(node: ast.FunctionDef) -> ast.FunctionDef:
    """A function without its docstring."""
    bare = copy(node)
    bare.body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return bare


def imports_of(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(name, statement) of an import; names of `import a.b` are those of its first part."""
    if isinstance(node, ast.Import):
        for x in node.names:
            yield (x.asname or x.name.partition(".")[0]), ast.unparse(ast.Import([x]))
    elif isinstance(node, ast.ImportFrom):
        for x in node.names:
            yield (x.asname or x.name), ast.unparse(ast.ImportFrom(node.module, [x], node.level))


def is_standard(statement: str) -> bool:
    """Whether a statement imports from the standard library.

    >>> is_standard("from itertools import chain"), is_standard("from .core import is_iterable"), is_standard("")
    (True, False, False)
    """
    match = re.match(r"(?:from|import) (\w+)", statement)
    return bool(match) and match[1] in sys.stdlib_module_names


def globals_of(code: str) -> set[str]:
    """The global names that code reads.

    >>> sorted(globals_of("def f(x: int):\\n    y = chain(x)\\n    return [g(z) for z in y]"))
    ['chain', 'g', 'int']
    """
    pending, names = [symtable.symtable(code, "code", "exec")], set()
    while pending:
        table = pending.pop()
        pending += table.get_children()
        names |= {x.get_name() for x in table.get_symbols() if x.is_referenced() and (x.is_global() or not x.is_local())}
        if table.get_type() == "module":
            names |= {x.get_name() for x in table.get_symbols() if x.is_referenced()}
    return names


def is_function(code: str) -> bool:
    """Whether code is valid, and no placeholder."""
    try:
        *_, node = ast.parse(code).body
    except SyntaxError:
        return False
    return isinstance(node, ast.FunctionDef) and not isinstance(node.body[0], (ast.Raise, ast.Pass))


def imports_from(source: str, package: str) -> bool:
    """Whether an example only imports from the package that the function is of."""
    return bool(re.match(rf"(from|import) {package}\b", source))


def prose(docstring: str) -> str:
    """A docstring without its examples and their headings."""
    try:
        parts = doctest.DocTestParser().parse(docstring)
    except ValueError:
        return docstring
    text = "".join(x for x in parts if isinstance(x, str)) if len(parts) > 1 else docstring
    text = re.sub(r"(?m)^\s*Examples?:?:?[ \t]*(\n\s*[=-]+)?[ \t]*$", "", text)
    text = re.split(r"(?m)^\s*(?:References|See Also)\s*\n\s*[=-]{3,}", text)[0]
    return re.sub(r"\n\s*\n\s*", "\n\n", cleandoc(text)).strip()


def as_text(example: doctest.Example) -> str:
    """An example as a docstring has it."""
    first, *rest = example.source.splitlines()
    lines = [f">>> {first}", *(f"... {x}" for x in rest)]
    wanted = example.want.replace("\n\n", "\n<BLANKLINE>\n")
    return "\n".join(lines) + "\n" + wanted
