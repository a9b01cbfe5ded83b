"""Predict the answer of every row, in a stream and in order: a file of rows, or rows in memory.

    {"id": 7, "text": "You have won"}   ->   {"id": 7, "text": "You have won", "predicted": "spam", "probabilities": {...}}

An input column with the name of an output column is kept as input_<name>. A file may be larger than memory. Unusable rows
go to OUTPUT.bad_rows.jsonl, with file, line and reason.
"""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase

from weitiao.core.batch import Row, pack
from weitiao.core.errors import DataError, ModelError, message_of
from weitiao.core.example import BadRow, Example, SourceLocation
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module
from weitiao.core.reporter import Reporter, is_live
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.data.columns import ColumnMapping
from weitiao.data.later import trained_columns, with_settings_of
from weitiao.data.mapping import find_inference_mapping
from weitiao.data.read import ROW_ERRORS, files_of, reader_of
from weitiao.data.records import Reader, Record
from weitiao.data.unpacking import is_packed
from weitiao.pipeline.load import BaseAssets
from weitiao.plan.resolve import choose_max_length, choose_overlong

CHUNK = 1024  # rows that are read, then sorted by length
BATCH_TOKENS = 2048  # tokens that run at once


class LoadedModel(Protocol):
    """What prediction needs of `pipeline.inference.Model`."""

    model: TrainableModel
    assets: BaseAssets
    objective: Objective
    recipe: Recipe | None
    training_columns: tuple[str, ...]

    def for_task(self, task: str) -> "LoadedModel": ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


@dataclass
class PredictReport:
    """How many rows were predicted, and how many could not be."""

    rows: int = 0
    bad: int = 0
    """Rows that could not be predicted, besides."""
    truncated: int = 0
    """Of the rows: longer than max_length."""


@dataclass
class InputRow:
    """A row to predict: its columns, the example it is, and the encoded rows that the model sees of it."""

    fields: dict[str, Any]
    example: Example
    encoded: list[Row]
    truncated: bool


@dataclass
class RowPredictor:
    """A model with the column mapping of one source of rows."""

    loaded: LoadedModel
    columns: dict[str, str] | None = None
    """Which column is what; None: as in training, or found by looking at the first rows."""
    task: str = ""
    report: PredictReport = field(default_factory=PredictReport)
    mapping: ColumnMapping | None = None

    @classmethod
    def make(
        cls, loaded: LoadedModel, task: str = "", text: str | None = None, columns: dict[str, str] | None = None
    ) -> "RowPredictor":
        """For one task of a model.

        Args:
            text: the column to read; None: as in the run's recipe, or found by looking.
            columns: which column is what, where that is more than the text.

        Raises:
            ModelError: the objective generates its answers.
            RecipeError: there is no such task.
        """
        loaded = loaded.for_task(task)
        if loaded.objective.traits.generative and not loaded.objective.traits.has_predict:
            raise ModelError(
                "a model trained with objective {objective} generates its answers: "
                "use `weitiao generate RUN --prompts FILE`.",
                objective=loaded.objective.name,
            )
        return cls(loaded, columns or ({_input_column(loaded): text} if text else None), task)

    def source_of(self, file: Path, source: Source) -> Source:
        """The file with the columns, encoding and format of the run's training files, unless it has its own."""
        recipe, columns = self.loaded.recipe, self.columns or source.columns
        source = source.model_copy(update={"path": str(file), "task": self.task, "columns": columns})
        if recipe is not None:
            source = with_settings_of(source, recipe.data, has_answers=False, strict=True)
        self.columns = source.columns
        return source

    def encode(self, records: Sequence[Record | BadRow], source: str) -> list[InputRow | BadRow]:
        """Records as rows that the model can take; the mapping is found from the first ones."""
        readable = [x.fields for x in records if isinstance(x, Record)]
        if self.mapping is None and readable:
            example_type, recipe = self.loaded.objective.traits.example_type, self.loaded.recipe
            present = {name for fields in readable for name in fields}
            if self.columns is None and recipe is not None:
                self.columns = trained_columns(recipe.data, self.task, present) or self._inferred_in_training(present)
            self.mapping = find_inference_mapping(readable, example_type, self.columns, source)
        return [self._encode(x) for x in records]

    def _inferred_in_training(self, present: set[str]) -> dict[str, str] | None:
        """The input column that was inferred in the training files, where these rows have it, too."""
        inputs = [x.partition(" -> ")[0] for x in self.loaded.training_columns]
        return next(({_input_column(self.loaded): name} for name in inputs if name in present), None)

    def _encode(self, record: Record | BadRow) -> InputRow | BadRow:
        if isinstance(record, BadRow):
            return record
        assert self.mapping is not None
        objective = self.loaded.objective
        try:
            example = self.mapping.to_example(record)
            example.full_text.encode("utf-8")
            row = objective.encode_input(example, self.loaded.assets.processor)
            if objective.num_positions(row) <= self.max_length:
                return InputRow(record.fields, example, [row], False)
            if self.overlong == "sliding_window":
                return InputRow(record.fields, example, objective.windows(row, self.max_length), False)
            return InputRow(record.fields, example, [objective.cut(row, self.max_length)[0]], True)
        except UnicodeEncodeError:
            return BadRow(record.where, Message("the text has an unpaired surrogate, which is not a character"))
        except ROW_ERRORS as error:
            return BadRow(record.where, message_of(error), str(record.fields)[:200])

    @property
    def max_length(self) -> int:
        limit = self.loaded.assets.max_length
        if self.loaded.recipe is None:
            return min(limit or 512, 512)
        return int(choose_max_length(self.loaded.recipe, limit).value)

    @property
    def overlong(self) -> str:
        if self.loaded.recipe is None or self.loaded.recipe.overlong == "drop_turns":  # these rows are no conversations
            return self.loaded.objective.traits.overlong
        return str(choose_overlong(self.loaded.recipe, self.loaded.objective).value)

    @torch.no_grad()
    def predict(self, inputs: Sequence[InputRow]) -> list[Any]:
        """What the objective predicts of each row; windows of one row are merged."""
        objective, model = self.loaded.objective, self.loaded.model
        encoded = [row for x in inputs for row in x.encoded]
        predictions: dict[int, Any] = {}
        with evaluating(model):
            for indices in _by_length(encoded):
                batch = pack([encoded[i] for i in indices], indices).to(model.device)
                predictions |= zip(batch.row_ids, objective.predict(model, batch))
        self.report.rows += len(inputs)
        self.report.truncated += sum(x.truncated for x in inputs)
        ends = itertools.accumulate(len(x.encoded) for x in inputs)
        return [
            objective.merge_windows(
                [predictions[i] for i in range(end - len(x.encoded), end)], x.example, self.loaded.assets.processor
            )
            for x, end in zip(inputs, ends)
        ]

    def records(self, inputs: Sequence[InputRow]) -> Iterator[dict[str, Any]]:
        """Each row's columns with what is predicted of it."""
        for x, prediction in zip(inputs, self.predict(inputs)):
            answer = self.loaded.objective.answer(prediction)
            output = {**({} if answer is None else {"predicted": answer}), **self.loaded.objective.to_record(prediction)}
            columns = {f"input_{key}" if key in output else key: _plain(value) for key, value in x.fields.items()}
            yield {**columns, **output}


def _input_column(loaded: LoadedModel) -> str:
    """What `columns` calls the column that is read."""
    return "audio" if loaded.assets.architecture.modality == "speech" else "text"


def predict_rows(
    loaded: LoadedModel, rows: Iterable[Mapping[str, Any] | str] | str | Path, task: str = ""
) -> Iterator[dict[str, Any]]:
    """Rows (or texts) in memory or in a file, with what is predicted, in order; an unusable row gets `error` instead.

    Raises:
        ModelError, RecipeError: as `RowPredictor.make`, at once.
        DataError: there is no such file, or no column to read.
    """
    predictor = RowPredictor.make(loaded, task)
    if isinstance(rows, (str, Path)):
        if not Path(rows).is_file():
            raise DataError("there is no file {file}.", file=rows)
        source = predictor.source_of(Path(rows), Source(path=str(rows)))
        return _predict_chunks(predictor, (chunk for chunk, _ in _read(source)), str(rows))
    fields = ({"text": x} if isinstance(x, str) else dict(x) for x in rows)
    records = (Record(SourceLocation("rows", i), x) for i, x in enumerate(fields, 1))
    return _predict_chunks(predictor, iter(lambda: list(itertools.islice(records, CHUNK)), []), "rows")


def _predict_chunks(
    predictor: RowPredictor, chunks: Iterable[Sequence[Record | BadRow]], source: str
) -> Iterator[dict[str, Any]]:
    for chunk in chunks:
        encoded = predictor.encode(chunk, source)
        answers = predictor.records([x for x in encoded if isinstance(x, InputRow)])
        for x, record in zip(encoded, chunk):
            fields = record.fields if isinstance(record, Record) else {}
            yield {**fields, "error": str(x.reason)} if isinstance(x, BadRow) else next(answers)


def predict_file(
    loaded: LoadedModel,
    file: str,
    output: str,
    reporter: Reporter,
    text: str | None = None,
    task: str = "",
    settings: Source | None = None,
) -> PredictReport:
    """Predict every row of a file.

    Args:
        file: in any format that a reader knows.
        output: JSON lines; written to OUTPUT.part first and renamed when complete.
        text: the column to read; None: as in the run's recipe, or found by looking.
        task: of a multi-task run, which task.
        settings: the file's own columns, encoding and format; what it leaves open is as in training.

    Raises:
        ModelError: the objective generates its answers.
        DataError: there is no such file, no column to read, or no usable row.
        RecipeError: there is no such task.
    """
    predictor = RowPredictor.make(loaded, task, text)
    if not Path(file).is_file():
        raise DataError("--input: there is no file {file}.", file=file)
    source = predictor.source_of(Path(file), settings or Source(path=file))
    part, bad, report = Path(f"{output}.part"), Path(f"{output}.bad_rows.jsonl"), predictor.report
    bar = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with (
        open(part, "w", encoding="utf-8") as predicted,
        open(f"{bad}.part", "w", encoding="utf-8") as refused,
        Progress(*bar, console=reporter.console, transient=True, disable=not is_live(reporter.console)) as progress,
    ):
        bar_id = progress.add_task("rows", total=None if is_packed(Path(file)) else Path(file).stat().st_size)
        for chunk, offset in _read(source):
            encoded = predictor.encode(chunk, file)
            for line in predictor.records([x for x in encoded if isinstance(x, InputRow)]):
                predicted.write(json.dumps(line, ensure_ascii=False) + "\n")
            for x in encoded:
                if isinstance(x, BadRow):
                    report.bad += 1
                    line = {"file": x.where.file, "line": x.where.line, "reason": str(x.reason), "excerpt": x.excerpt}
                    refused.write(json.dumps(line, ensure_ascii=False) + "\n")
            progress.update(bar_id, completed=offset, description=f"{report.rows:,} rows")
    if not report.rows:
        raise DataError("{file}: no row is usable; see {bad}.part.", file=file, bad=bad)
    os.replace(part, output)
    os.replace(f"{bad}.part", bad) if report.bad else os.unlink(f"{bad}.part")
    return report


def _read(source: Source) -> Iterator[tuple[list[Record | BadRow], int | None]]:
    """The file's rows in chunks, and the byte offset that each chunk reaches."""
    readers = ((file, find_module(Reader, reader_of(file, source))) for file in files_of(source))
    records = (x for file, reader in readers for x in reader.read(file, source.encoding))
    while chunk := list(itertools.islice(records, CHUNK)):
        yield chunk, chunk[-1].where.offset


def _plain(value: Any) -> Any:
    """NaN is not JSON."""
    return None if isinstance(value, float) and value != value else value


def _by_length(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Indices of rows in batches of similar length, at most BATCH_TOKENS tokens each."""
    batch: list[int] = []
    tokens = 0
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"])):
        length = len(rows[i]["input_ids"])
        if batch and tokens + length > BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += length
    if batch:
        yield batch
