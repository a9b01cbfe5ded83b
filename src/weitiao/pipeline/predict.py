"""Rows whose answer nobody knows, through a Run: read, asked and written in a stream, in their order.

    {"id": 7, "text": "You have won"}   ->   {"id": 7, "text": "You have won", "predicted": "spam", "probabilities": {...}}

A column of the file that is called as one of the answers' is kept as given_predicted.

A file may be larger than memory. Rows that cannot be read stand in OUTPUT.bad_rows.jsonl, with file, line and reason.
"""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from weitiao.core.batch import Row, pack
from weitiao.core.errors import DataError, ModelError
from weitiao.core.example import BadRow, Example
from weitiao.core.recipe import Source
from weitiao.core.registry import find_module
from weitiao.core.reporter import Reporter
from weitiao.data.columns import ColumnMapping
from weitiao.data.mapping import find_inference_mapping
from weitiao.data.read import reader_of
from weitiao.data.records import Reader, Record
from weitiao.pipeline.inference import Model
from weitiao.plan import resolve

TOGETHER, TOKENS = 1024, 2048  # rows that are sorted by length, tokens that run at once


@dataclass
class Predicted:
    """How many rows were answered, and how many could not be read."""

    rows: int = 0
    bad: int = 0
    cut: int = 0
    """Of the rows: longer than the context."""


def predict_file(
    opened: Model, file: str, output: str, reporter: Reporter, text: str | None = None, task: str = ""
) -> Predicted:
    """Answer every row of a file.

    Args:
        file: in any format that a reader knows.
        output: JSON lines; written beside it first, and moved there when it is whole.
        text: the column to read; default: as in the run's recipe, or found by looking.
        task: of a run that learnt many tasks, which one is asked.

    Raises:
        ModelError: the run answers by writing.
        DataError: there is no such file, no column to read, or not one row that can be read.
        RecipeError: there is no such task.
    """
    opened = opened.for_task(task)
    if opened.objective.traits.generative and not opened.objective.traits.has_predict:
        words = "answers by writing: ask it with `weitiao generate RUN --prompts FILE`"
        raise ModelError(f"a model trained with objective: {opened.objective.name} {words}.")
    if not Path(file).is_file():
        raise DataError(f"--input: there is no file {file}.")
    part, done, bad = Path(f"{output}.part"), Predicted(), Path(f"{output}.bad_rows.jsonl")
    learnt = [x.columns for x in opened.recipe.data if x.task == task] if opened.recipe else []
    read = "audio" if opened.tokens.architecture.modality == "speech" else "text"
    columns = {read: text} if text else next(iter(learnt), None)
    bar = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with (
        open(part, "w", encoding="utf-8") as whole,
        open(f"{bad}.part", "w", encoding="utf-8") as refused,
        Progress(*bar, console=reporter.console, transient=True, disable=not reporter.console.is_terminal) as progress,
    ):
        bar_of = progress.add_task("rows", total=Path(file).stat().st_size)
        for some, offset in _read(Path(file), opened, columns):
            for line in _answer(opened, [x for x in some if not isinstance(x, BadRow)], done):
                whole.write(json.dumps(line, ensure_ascii=False) + "\n")
            for x in some:
                if isinstance(x, BadRow):
                    done.bad += 1
                    facts = {"file": x.where.file, "line": x.where.line, "reason": x.reason, "excerpt": x.excerpt}
                    refused.write(json.dumps(facts, ensure_ascii=False) + "\n")
            progress.update(bar_of, completed=offset, description=f"{done.rows:,} rows")
    if not done.rows:
        raise DataError(f"{file}: not one row can be read; see {bad}.part.")
    os.replace(part, output)
    os.replace(f"{bad}.part", bad) if done.bad else os.unlink(f"{bad}.part")
    return done


@dataclass
class Asked:
    """A row of the file: its columns, the example it makes, and the rows that the model is shown of it."""

    fields: dict[str, Any]
    example: Example
    rows: list[Row]
    cut: bool


def _read(file: Path, opened: Model, columns: dict[str, str] | None) -> Iterator[tuple[list[Asked | BadRow], int | None]]:
    """Some rows at a time, and how far into the file they reach."""
    source = Source(path=str(file))
    records = iter(find_module(Reader, reader_of(file, source)).read(file, source.encoding))
    mapping: ColumnMapping | None = None
    while some := list(itertools.islice(records, TOGETHER)):
        readable = [x.fields for x in some if isinstance(x, Record)]
        if mapping is None and readable:
            mapping = find_inference_mapping(readable, opened.objective.traits.example_type, columns, str(file))
        yield [_ask(x, mapping, opened) for x in some], some[-1].where.offset


def _ask(record: Record | BadRow, mapping: ColumnMapping | None, opened: Model) -> Asked | BadRow:
    if isinstance(record, BadRow) or mapping is None:
        return record  # pyright: ignore[reportReturnType]
    try:
        example = mapping.of(record)
        example.full_text.encode("utf-8")
        row, max_length = opened.objective.encode_input(example, opened.tokens.processor), _context(opened)
        if opened.objective.num_positions(row) <= max_length:
            return Asked(record.fields, example, [row], False)
        if _in_windows(opened):
            return Asked(record.fields, example, opened.objective.windows(row, max_length), False)
        return Asked(record.fields, example, [opened.objective.cut(row, max_length)[0]], True)
    except UnicodeEncodeError:
        return BadRow(record.where, "the text holds half of a surrogate pair, which is no character")
    except (ValueError, TypeError) as error:
        return BadRow(record.where, str(error), str(record.fields)[:200])


@torch.no_grad()
def _answer(opened: Model, asked: Sequence[Asked], done: Predicted) -> Iterator[dict[str, Any]]:
    objective, model = opened.objective, opened.model
    rows = [row for x in asked for row in x.rows]
    ends = list(itertools.accumulate(len(x.rows) for x in asked))
    said: dict[int, Any] = {}
    with model.evaluating():
        for chosen in _by_length(rows):
            batch = pack([rows[i] for i in chosen], chosen).to(model.device)
            said |= zip(batch.row_ids, objective.predict(model, batch))
    done.rows += len(asked)
    done.cut += sum(x.cut for x in asked)
    for x, end in zip(asked, ends):
        whole = objective.merge_windows(
            [said[i] for i in range(end - len(x.rows), end)], x.example, opened.tokens.processor
        )
        answer = objective.answer(whole)
        new = {**({} if answer is None else {"predicted": answer}), **objective.to_record(whole)}
        yield {**{f"given_{key}" if key in new else key: _plain(value) for key, value in x.fields.items()}, **new}


def _plain(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and value != value else value


def _context(opened: Model) -> int:
    recipe = opened.recipe
    limit = opened.tokens.max_length
    return int(resolve.choose_max_length(recipe, limit).value) if recipe else min(limit or 512, 512)


def _in_windows(opened: Model) -> bool:
    recipe = opened.recipe
    return (
        resolve.choose_overlong(recipe, opened.objective).value if recipe else opened.objective.traits.overlong
    ) == "sliding_window"


def _by_length(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Rows of like length together, at most TOKENS at once."""
    now: list[int] = []
    tokens = 0
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"])):
        length = len(rows[i]["input_ids"])
        if now and tokens + length > TOKENS:
            yield now
            now, tokens = [], 0
        now.append(i)
        tokens += length
    if now:
        yield now
