"""Functions that call a company's own library, which no base model knows. Run: python quickstart/prepare_code_library.py

The library is made up (depot.py), and so are the functions: a docstring asks for a selection of a table's rows and for a
result of them, and the answer is calls of the library. A quarter of the pairs (selection, result) is held out: test rows
combine what training rows show only apart. Training rows that are near-duplicates of a test row are dropped.

Writes quickstart/data/code_library_{train,validation,test,documented}.jsonl; `documented` has the test rows with the
library's reference in the prompt: what a base model is given without fine-tuning. Always the same bytes.
"""

import ast
import json
import random
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

from documented_functions import QUESTION
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.evaluate.sandbox import run_programs

DATA = Path(__file__).parent / "data"
LIBRARY = (Path(__file__).parent / "depot.py").read_text(encoding="utf-8")
TABLES = ("orders", "invoices", "returns", "repairs", "deliveries", "visits")
STATES = {"valid": "rows", "draft": "drafts"}
SELECTIONS = {
    "customer": ("of a customer", "depot.where(found, customer=customer)"),
    "city": ("in a city", "depot.where(found, city=city)"),
    "start": ("from a day on", "depot.since(found, start)"),
    "end": ("before a day", "depot.until(found, end)"),
    "limit": ("of more than an amount in euros", "depot.above(found, limit)"),
}
RESULTS = {
    "count": ("the number of", "len(found)"),
    "sum": ("the sum of", "depot.euros(depot.total(found))"),
    "mean": ("the average amount of", "depot.euros(depot.total(found) / max(1, len(found)))"),
    "latest": ("the label of the last of", "depot.label(depot.latest(found))"),
    "labels": ("the labels of all", "[depot.label(x) for x in found]"),
    "per_city": ("the number per city of", 'depot.tally(found, "city")'),
    "per_customer": ("the number per customer of", 'depot.tally(found, "customer")'),
    "busiest": ("the city with most of", 'next(iter(depot.tally(found, "city")), "")'),
}
WORDINGS = ("Return {x}.", "Find {x}.", "Report {x}.")
VALUES = {
    "customer": ["Abel", "Berg", "Cole"],
    "city": ["Ulm", "Jena", "Kiel"],
    "start": ["2024-01-20", "2024-02-15"],
    "end": ["2024-03-01", "2024-02-10"],
    "limit": [20, 55.5],
}
TRAINING, VALIDATION, TESTING = 480, 40, 160  # rows
HELD_OUT = 0.25  # of the pairs of a selection and a result
TESTS = """\
import random, types
depot = types.ModuleType("depot")
exec({library!r}, depot.__dict__)
dice = random.Random(7)
for table in {tables!r}:
    depot.TABLES[table] = [
        {{"id": i, "stamp": dice.random() < 0.6, "day": 1450 + dice.randrange(120), "amount": dice.randrange(90000),
         "customer": dice.choice(["Abel", "Berg", "Cole", "Dahl"]), "city": dice.choice(["Ulm", "Jena", "Kiel", "Hof"])}}
        for i in range(80)
    ]
wanted = {{}}
exec({reference!r}, {{"depot": depot}}, wanted)
for values in {calls!r}:
    assert {name}(*values) == wanted[{name!r}](*values), values
"""


@dataclass(frozen=True)
class Task:
    """A function to write."""

    table: str
    state: str
    selection: tuple[str, ...]
    result: str
    wording: str

    @property
    def name(self) -> str:
        return "_".join([self.result, self.state, self.table, *(f"by_{x}" for x in self.selection)])

    @property
    def signature(self) -> str:
        return f"def {self.name}({', '.join(self.selection)}):"

    @property
    def answer(self) -> str:
        """The function."""
        lines = [self.signature, f'    found = depot.{STATES[self.state]}("{self.table}")']
        lines += [f"    found = {SELECTIONS[x][1]}" for x in self.selection]
        lines.append(f'    return depot.audit({RESULTS[self.result][1]}, "{self.table}/{self.result}")')
        return "\n".join(lines)

    @property
    def question(self) -> str:
        what = f"{RESULTS[self.result][0]} {self.state} {self.table}"
        text = self.wording.format(x=" ".join([what, *(SELECTIONS[x][0] for x in self.selection)]))
        return QUESTION.format(code=f'{self.signature}\n    """{text}"""')

    @property
    def tests(self) -> str:
        calls = list(product(*(VALUES[x] for x in self.selection)))
        return TESTS.format(library=LIBRARY, tables=TABLES, reference=self.answer, calls=calls, name=self.name)

    def row(self) -> dict[str, Any]:
        """A row of training."""
        return {"question": self.question, "answer": f"```python\n{self.answer}\n```"}

    def test_row(self) -> dict[str, Any]:
        """A row of the test; rows of one pair belong together."""
        return {**self.row(), "tests": self.tests, "group": f"{'+'.join(self.selection) or 'all'} {self.result}"}


def main() -> None:
    """Writes the files unless they exist."""
    if (DATA / "code_library_documented.jsonl").exists():
        return
    parts = split()
    test = [x.test_row() for x in parts["test"]]
    failures = [x for x in run_programs([f"{x.answer}\n\n{x.tests}" for x in parts["test"]]) if not x.passed]
    assert not failures, failures[0]
    DATA.mkdir(exist_ok=True)
    write("train", [x.row() for x in parts["train"]])
    write("validation", [x.row() for x in parts["validation"]])
    write("test", test)
    write("documented", [{**x, "question": f"{reference_of_library()}\n\n{x['question']}"} for x in test])


def split() -> dict[str, list[Task]]:
    """Tasks of train, validation and test; no pair of a selection and a result of one is in another."""
    dice = random.Random(0)
    selections = [x for n in range(3) for x in combinations(SELECTIONS, n)]
    pairs = list(product(selections, RESULTS))
    dice.shuffle(pairs)
    count = round(HELD_OUT * len(pairs))
    bounds = {"test": (0, count), "validation": (count, count + count // 4), "train": (count + count // 4, len(pairs))}
    parts: dict[str, list[Task]] = {}
    for name, (start, end) in bounds.items():
        tasks = [
            Task(table, state, selection, result, dice.choice(WORDINGS))
            for (selection, result), table, state in product(pairs[start:end], TABLES, STATES)
        ]
        parts[name] = dice.sample(tasks, {"test": TESTING, "validation": VALIDATION}.get(name, len(tasks)))
    texts = {name: ["\n".join(x.row().values()) for x in tasks] for name, tasks in parts.items()}
    near = near_duplicates([*texts["test"], *texts["validation"]], texts["train"])
    parts["train"] = [x for i, x in enumerate(parts["train"]) if i not in near][:TRAINING]
    return parts


def reference_of_library() -> str:
    """The library's functions with their docstrings, as a prompt has them."""
    module = ast.parse(LIBRARY)
    functions = [x for x in module.body if isinstance(x, ast.FunctionDef)]
    lines = [f"depot.{x.name}({ast.unparse(x.args)}): {ast.get_docstring(x)}" for x in functions]
    return "\n".join(["Use the library depot, which is imported:", *lines])


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """A file of rows."""
    lines = [json.dumps(x, ensure_ascii=False) + "\n" for x in rows]
    (DATA / f"code_library_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"code_library_{name}: {len(rows)} rows, {sum(map(len, lines)) // 1000} kB")


if __name__ == "__main__":
    main()
