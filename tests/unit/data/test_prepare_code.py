"""The scripts that make functions to write: tests are hidden, stubs fail, originals pass, no cluster is on both sides."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import prepare_code
import prepare_code_library
from documented_functions import Function, functions_of, prose
from support.sandbox import skip_without_sandbox
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.evaluate.sandbox import code_of, run_programs

QUICKSTART = Path(__file__).parents[3] / "quickstart"
SOURCE = '''
"""A module."""
from itertools import chain
from typing import TypeVar
from .core import other
T = TypeVar("T")

def flatten(lists: list[T]) -> list[T]:
    """Join lists.

    Examples:
        >>> from sample import flatten
        >>> flatten([[1], [2]])
        [1, 2]
        >>> both = [[3], []]
        >>> flatten(both)
        [3]

    See Also
    ========
    other
    """
    # one after the other
    return list(chain.from_iterable(lists))

def double(x):
    """Twice a number.

    >>> double(2)
    4
    """
    return times(x, 2)

def times(x, y):
    """A product.

    >>> times(2, 3)
    6
    >>> times(1, 6)
    6
    """
    return x * y

def wrong(x):
    """Add one.

    >>> wrong(1)
    2
    >>> wrong(2)
    3
    """
    return x + 2

def foreign(x):
    """Call something of another file."""
    return other(x)

def undocumented(x):
    return x

def placeholder(x):
    """Not written yet."""
    raise NotImplementedError
'''


@pytest.fixture
def sample(tmp_path: Path) -> dict[str, Function]:
    folder = tmp_path / "sample"
    (folder / "tests").mkdir(parents=True)
    (folder / "code.py").write_text(SOURCE)
    (folder / "tests" / "test_code.py").write_text('def f(x):\n    """Not used."""\n    return x\n')
    return {x.name: x for x in functions_of(folder)}


def test_functions_that_stand_alone(sample: dict[str, Function]) -> None:
    assert list(sample) == ["flatten", "double", "times", "wrong"]
    flatten, double = sample["flatten"], sample["double"]
    assert flatten.head == "from itertools import chain\nfrom typing import TypeVar\n\nT = TypeVar('T')\n\n"
    assert code_of(flatten.answer).endswith("    # one after the other\n    return list(chain.from_iterable(lists))")
    assert double.helpers == "def times(x, y):\n    return x * y\n\n" and double.helpers in double.question
    assert "def times" not in double.answer, "only the function itself is to be written"


def test_examples_after_the_first_are_hidden(sample: dict[str, Function]) -> None:
    flatten = sample["flatten"]
    assert prose(flatten.docstring) == "Join lists."
    assert ">>> flatten([[1], [2]])\n    [1, 2]\n" in flatten.question
    assert "both" not in flatten.question and "both" not in flatten.answer and "both" in flatten.tests
    assert "from sample" not in flatten.tests, "or the package would be tested, and not the answer"
    assert sample["double"].tests == "", "its only example is shown"


def test_original_passes_and_stubs_fail(sample: dict[str, Function]) -> None:
    skip_without_sandbox()
    flatten, times, wrong = sample["flatten"], sample["times"], sample["wrong"]
    assert prepare_code.are_usable([flatten, times, wrong]) == [True, False, False]
    passed = [x.passed for x in run_programs([f"{stub}\n\n{times.tests}" for stub in times.stubs])]
    assert sum(passed) == 1, "what the shown example returns is right by chance: 6 and 6"
    programs = [f"{stub}\n\n{flatten.tests}" for stub in flatten.stubs]
    assert not any(x.passed for x in run_programs(programs))
    cheat = "import sys\nsys.modules['more_itertools'] = sys\n"
    assert [x.passed for x in run_programs([f"{y}{flatten.code}\n\n{flatten.tests}" for y in ("", cheat)])] == [True, False]


def function(file: str, name: str, body: str) -> Function:
    return Function(file, name, "", "", f"def {name}(values):", body, f"What {name} in {file} does.")


LONG = "    total = 0\n    for value in values:\n        total += value * value - 1\n    return total"


def test_clusters() -> None:
    """By file, by name, by nearly equal code under another name; what is like a problem of an exam is found."""
    functions = [
        function("p/a.py", "squares", LONG),
        function("p/a.py", "first", "    return values[0]"),
        function("p/b.py", "sum_up", LONG.replace("- 1", "- 2")),
        function("p/c.py", "first", "    for value in values:\n        return value"),
        function("p/d.py", "unlike", "    import json\n    return json.dumps(sorted(values), indent=3)"),
    ]
    assert prepare_code.clusters(functions) == [0, 0, 0, 0, 4]
    assert prepare_code.same_as(functions[:1], functions[1:]) == [None, 0, None, None]
    assert prepare_code.same_as(functions[3:4], functions[:3]) == [None, 0, None]


def test_parts_of_the_library_have_no_pair_in_common() -> None:
    parts = prepare_code_library.split()
    pairs = {name: {(x.selection, x.result) for x in tasks} for name, tasks in parts.items()}
    assert not pairs["train"] & pairs["test"] and not pairs["validation"] & (pairs["train"] | pairs["test"])
    assert len(parts["train"]) == 480 and len(parts["test"]) == 160 and len(pairs["test"]) >= 20
    known = {y for x in parts["train"] for y in (*x.selection, x.result)}
    assert all({*x.selection, x.result} <= known for x in parts["test"]), "each part of a test row is in a training row"
    texts = {name: ["\n".join(x.row().values()) for x in tasks] for name, tasks in parts.items()}
    assert not near_duplicates(texts["train"], texts["test"])


def test_library_is_hidden_and_needed() -> None:
    skip_without_sandbox()
    task = prepare_code_library.Task("orders", "valid", ("limit",), "sum", "Return {x}.")
    assert "depot" not in task.question and "depot.above" in task.answer
    answers = [
        task.answer,
        task.answer.replace("depot.rows", "depot.drafts"),
        task.answer.replace("depot.euros", ""),
        "pass",
    ]
    assert [x.passed for x in run_programs([f"{x}\n\n{task.tests}" for x in answers])] == [True, False, False, False]
    reference = prepare_code_library.reference_of_library()
    assert "depot.above(found, euros): The rows of more than an amount." in reference


@pytest.mark.full
@pytest.mark.real
def test_real_files_do_not_leak() -> None:
    for script in ("code", "code_library"):
        subprocess.run([sys.executable, str(QUICKSTART / f"prepare_{script}.py")], check=True)

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (QUICKSTART / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]

    train, validation, test, problems = map(rows, ("code_train", "code_validation", "code_test", "code_humaneval"))
    assert (len(train), len(validation), len(test), len(problems)) == (619, 44, 164, 164)
    sides = [{x["source"].partition(":")[0] for x in part} for part in (train, validation, test)]
    assert not sides[0] & sides[2] and not sides[0] & sides[1] and not sides[1] & sides[2]
    texts = [[f"{x['question']}\n{x['answer']}" for x in part] for part in (train, validation, test, problems)]
    assert not near_duplicates(texts[0], [*texts[1], *texts[2], *texts[3]])
    skip_without_sandbox()
    judged = [*test, *problems, *rows("code_library_test")]
    assert all(x.passed for x in run_programs([f"{code_of(x['answer'])}\n\n{x['tests']}" for x in judged]))
