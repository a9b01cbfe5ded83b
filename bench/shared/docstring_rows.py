"""Function -> docstring rows for supervised fine-tuning, made from the standard library of the running Python.

    python -m bench.shared.docstring_rows --model MODEL_FOLDER --train 96 --validation 64 --out FOLDER

Writes FOLDER/train.jsonl and FOLDER/validation.jsonl, one {"messages": [user, assistant]} per line, and prints one JSON
line that describes them. No function and no docstring occurs twice, so the two files share neither. A row is kept if
the tokenizer's own chat template makes it 30 to 512 tokens long (--shortest, --longest). The rows depend only on the
Python version, which is in the printed line together with a checksum of both files.
"""

import argparse
import ast
import hashlib
import inspect
import json
import os
import platform
import random
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
SHORTEST, LONGEST = 30, 512


class FunctionFinder(ast.NodeVisitor):
    """Collects functions and methods, but not nested functions: their docstring would be part of the prompt."""

    def __init__(self) -> None:
        self.functions: list[ast.FunctionDef | ast.AsyncFunctionDef] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.functions.append(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.functions.append(node)


def source_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))


def without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str | None:
    """The function's source with its docstring removed; None if the body is only a docstring."""
    doc, first_line = node.body[0], min([node.lineno, *(d.lineno for d in node.decorator_list)])
    if len(node.body) == 1 or doc.lineno == node.lineno or node.body[1].lineno <= doc.end_lineno:
        return None
    source = lines[first_line - 1 : doc.lineno - 1] + lines[doc.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(source)).strip("\n")


def function_pairs(root: Path) -> Iterator[tuple[str, str]]:
    """(source without docstring, cleaned docstring) of every documented function below a folder."""
    for path in source_files(root):
        try:
            text = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(text)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        finder, lines = FunctionFinder(), text.split("\n")
        finder.visit(tree)
        for node in finder.functions:
            docstring = inspect.cleandoc(ast.get_docstring(node) or "").strip()
            source = without_docstring(node, lines) if docstring else None
            if source:
                yield source, docstring


def unique_pairs(pairs: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    sources, docstrings = set(), set()
    for source, docstring in pairs:
        plain = " ".join(source.split())
        if plain not in sources and docstring not in docstrings:
            sources.add(plain)
            docstrings.add(docstring)
            yield source, docstring


def shuffled_pairs(seed: int) -> list[tuple[str, str]]:
    """(source, docstring) of this Python's standard library, each once, in a fixed random order."""
    pairs = sorted(unique_pairs(function_pairs(Path(sysconfig.get_paths()["stdlib"]))))
    random.Random(seed).shuffle(pairs)
    return pairs


def as_row(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def usable_rows(tokenizer, seed: int, shortest: int, longest: int) -> Iterator[dict]:
    """Rows of an allowed length, in a fixed random order."""
    for source, docstring in shuffled_pairs(seed):
        row = as_row(f"Write a docstring for this function:\n```python\n{source}\n```", docstring)
        text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
        if shortest <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= longest:
            yield row


def write_rows(path: Path, rows: list[dict]) -> str:
    """Writes one JSON object per line and returns the file's checksum."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_parts(rows: Iterator[dict], options: argparse.Namespace) -> dict:
    """Writes both files; returns their description."""
    requested = options.validation + options.train
    selected = list(islice(rows, requested))
    if len(selected) < requested:
        raise SystemExit(f"{requested} rows are requested, but there are only {len(selected)}.")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"python": platform.python_version(), "seed": options.seed}
    # Validation comes first, so that it stays the same for any number of training rows.
    splits = {"validation": selected[: options.validation], "train": selected[options.validation :]}
    for name, split in splits.items():
        report[name] = {"rows": len(split), "sha256": write_rows(options.out / f"{name}.jsonl", split)}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a model folder, for its tokenizer and chat template")
    parser.add_argument("--train", type=int, default=96)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shortest", type=int, default=SHORTEST, help="minimum tokens per row")
    parser.add_argument("--longest", type=int, default=LONGEST, help="maximum tokens per row")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from transformers import AutoTokenizer  # slow to import: only when run

    rows = usable_rows(AutoTokenizer.from_pretrained(options.model), options.seed, options.shortest, options.longest)
    print(json.dumps(write_parts(rows, options)))


if __name__ == "__main__":
    main()
