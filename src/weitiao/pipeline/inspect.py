"""`weitiao data inspect`: what files of data hold, and what to do about it. Rows are read once, in batches."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.example import Example, TextLabel
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.data.duplicates.clusters import cluster
from weitiao.data.duplicates.signatures import Signatures, sign
from weitiao.data.inspection.answers import OddAnswers
from weitiao.data.inspection.classes import ClassCounts
from weitiao.data.inspection.conflicts import Conflicts
from weitiao.data.inspection.excerpts import excerpt
from weitiao.data.inspection.leakage import leakage
from weitiao.data.inspection.lengths import CharacterLengths
from weitiao.data.inspection.markers import Markers
from weitiao.data.inspection.openings import Openings
from weitiao.data.inspection.personal import PersonalData
from weitiao.data.inspection.repetition import repetition
from weitiao.data.inspection.row_store import RowBatch, RowStore
from weitiao.data.inspection.row_texts import RowTexts
from weitiao.data.inspection.sample import Sample
from weitiao.data.inspection.sampled import cleanable, languages
from weitiao.data.inspection.scripts import Scripts
from weitiao.data.inspection.turns import TurnCounts
from weitiao.data.inspection.wrong_labels import MAX_ROWS, wrong_labels
from weitiao.pipeline.inspection_rows import Accepted, InspectedFile, batches, opened

SEED, SAMPLE = 1, 50_000
SHOWN_REASON = 1000  # characters: a reason may quote a cell
MAX_COMPARED = 1_000_000  # characters of a row: comparing takes some 60 bytes for each
ModelLook = Callable[[Sequence[tuple[int, Example]], int], dict[str, Any]]
"""A sample of rows, and of how many they are one -> what a model makes of them (pipeline/inspect_model.py)."""


@dataclass(frozen=True)
class InspectionRequest:
    """What is to be looked at."""

    sources: tuple[Source, ...]
    held_out: tuple[Source, ...] = ()
    """Files to evaluate on, which should not be in the data."""
    labels: bool = False
    """Also look for wrong labels."""
    seed: int = SEED
    base: str = ""
    """The model, for commands that are shown."""


@dataclass
class Inspection:
    """What was found: plain values and Occurrences, by question; texts come from the store."""

    request: InspectionRequest
    files: list[InspectedFile]
    store: RowStore
    held_out: list[Accepted]
    label_names: Sequence[str] = ()
    label_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(rows,) of each row its index in `label_names`."""
    answers: dict[str, Any] = field(default_factory=dict)
    """Question -> what its `result` returns."""

    def __getitem__(self, question: str) -> Any:
        return self.answers.get(question)

    @property
    def total(self) -> int:
        """Rows that were looked at."""
        return len(self.store)


class _Questions:
    """All that is asked of every row."""

    def __init__(self, seed: int, keep_examples: bool) -> None:
        self.conflicts = Conflicts()
        self._keep_examples = keep_examples
        self.by_name = {
            "lengths": CharacterLengths(),
            "turns": TurnCounts(),
            "scripts": Scripts(),
            "classes": ClassCounts(),
            "conflicts": self.conflicts,
            "answers": OddAnswers(),
            "openings": Openings(),
            "markers": Markers(),
            "personal": PersonalData(),
        }
        self.sample = Sample(SAMPLE, seed)

    def add(self, first: int, rows: Sequence[Accepted]) -> RowBatch:
        batch = RowBatch(first, [x.texts for x in rows])
        for question in self.by_name.values():
            question.add(batch)
        examples = [x.example if self._keep_examples else None for x in rows]
        self.sample.add(first, examples, [len(x.texts.prompt) + len(x.texts.answer) for x in rows])
        return batch


def inspect(request: InspectionRequest, model: ModelLook | None, reporter: Reporter) -> Inspection:
    """Look at files.

    Args:
        model: what a model makes of the rows; None: nothing is asked of one.

    Raises:
        DataError: a file is missing or empty, its columns fit no objective, or no row can be used.
    """
    files = opened(request.sources)
    held_out = [x for file in opened(request.held_out) for batch in batches(file) for x in batch]
    questions, store = _Questions(request.seed, model is not None), RowStore()
    signatures = sign(_texts(files, questions, store, reporter))
    if not len(store):
        first = next((x for file in files for y in file.bad.examples.values() for x in y), None)
        if first is not None:
            reason = excerpt(str(first.reason), SHOWN_REASON)
            raise DataError("data: no row can be used. First: {where}: {reason}", where=first.where, reason=reason)
        raise DataError("data: there is no row to train on.")
    labels = questions.conflicts
    inspection = Inspection(request, files, store, held_out, labels.label_names, labels.label_ids)
    inspection.answers = {name: x.result() for name, x in questions.by_name.items()}
    questions.by_name.clear()  # the next step needs the memory
    reporter.say(Message("comparing {n:,} rows", n=len(store)))
    inspection.answers |= _compared(inspection, signatures, questions)
    sampled = questions.sample.rows
    texts = [(i, store.whole(i)) for i, _ in sampled]
    inspection.answers["languages"] = languages(texts, len(store))
    inspection.answers["cleanable"] = cleanable(texts, len(store))
    if model is not None:
        reporter.say(Message("encoding {n:,} rows", n=len(sampled)))
        inspection.answers["model"] = model(sampled, len(store))
    return inspection


def _texts(files: Sequence[InspectedFile], questions: _Questions, store: RowStore, reporter: Reporter) -> Iterable[str]:
    """The texts to be compared, while all questions are put to each batch."""
    for file in files:
        reporter.say(Message("reading {file}", file=file.path))
        for rows in batches(file):
            batch = questions.add(len(store), rows)
            store.add(batch, [x.where for x in rows])
            yield from (x if len(x) <= MAX_COMPARED else _shortened(x) for x in batch.wholes)


def _shortened(text: str) -> str:
    """The beginning of a very long text and a digest of all of it: equal for equal texts, similar for similar ones."""
    return f"{text[:MAX_COMPARED]} {hashlib.sha256(text.encode()).hexdigest()}"


def _compared(inspection: Inspection, signatures: Signatures, questions: _Questions) -> dict[str, Any]:
    """What compares rows with one another, and with those to evaluate on."""
    clusters = cluster([signatures])
    answers: dict[str, Any] = {"repetition": repetition(clusters, questions.conflicts.label_ids)}
    if inspection.held_out:
        rows: list[RowTexts] = [x.texts for x in inspection.held_out]
        answers["leakage"] = leakage(rows, signatures, questions.conflicts.prompts, inspection.store)
    if inspection.request.labels:
        answers["wrong_labels"] = _wrong_labels(inspection, clusters.first)
    return answers


def _wrong_labels(inspection: Inspection, groups: np.ndarray) -> dict[str, Any]:
    kinds = {x.use.mapping.example_type for x in inspection.files if x.use}
    if kinds != {TextLabel} and not inspection["classes"]["closed"]:
        return {"n": 0, "reason": "no_labels"}
    chosen = np.arange(inspection.total)
    if inspection.total > MAX_ROWS:
        chosen = np.sort(np.random.default_rng(inspection.request.seed).choice(inspection.total, MAX_ROWS, replace=False))
    texts = [inspection.store.texts(i) for i in chosen.tolist()]
    labels = [str(inspection.label_names[i]) for i in inspection.label_ids[chosen].tolist()]
    labels = labels if kinds == {TextLabel} else [answer.strip() for _, answer in texts]
    result = wrong_labels([prompt for prompt, _ in texts], labels, groups[chosen], inspection.request.seed)
    for x in result.get("worst", ()):
        x["row"] = int(chosen[x["row"]])
    return result | {"total": inspection.total}
