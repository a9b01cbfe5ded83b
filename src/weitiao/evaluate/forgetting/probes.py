"""Probes: what a model knows and does beside its new task, item by item, so that before and after can be paired.

    neutral text      bits per byte of passages in English and Chinese          forgetting/neutral_en.txt, neutral_zh.txt
    exams             capital cities in English and Chinese                     exams/world_capitals_en.yaml, _zh.yaml
    behaviours        follows a format, stops, answers in the language, refuses forgetting/behaviours_en.yaml, _zh.yaml

Nothing is downloaded. The short form takes at most SECONDS before training: what does not fit is not asked, then or after.
"""

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from weitiao.core.messages import Message
from weitiao.core.option_scores import score_options
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.examination.cache import ExamCache
from weitiao.evaluate.examination.continuations import encode_prompt
from weitiao.evaluate.examination.items import PreparedExam
from weitiao.evaluate.examination.result import ItemResult
from weitiao.evaluate.examination.run import take_exam
from weitiao.evaluate.forgetting.behaviours import LANGUAGES, answer_prompts, behaviour_prompts

EXAMS = ("world_capitals_en", "world_capitals_zh")
BITS = "bits_per_byte"
SECONDS = 15.0  # of the short form before training; after training the same items take about as long
CHUNK = 48  # items between two looks at the clock
Track = Callable[[Sequence[Any], Any], Any]


@dataclass(frozen=True)
class ProbeResult:
    """What a model did on one item."""

    probe: str
    """exam.<name>, behaviour.<what>_<language> or bits_per_byte_<language>."""
    id: str
    item: str
    """What was asked; one question may show several things (a format, and that the answer ends)."""
    value: float
    """1: right, or as asked; 0: not. Of neutral text: its loss in nats."""
    size: float = 1.0
    """Of neutral text: its bytes."""
    options: int = 0
    """Of multiple choice: how many there are to guess from."""
    text: str = ""
    """What was answered."""

    def as_json(self) -> dict[str, Any]:
        """As a line of forgetting.jsonl."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ProbeResult":
        """The result of a line; other keys are ignored."""
        return cls(**{key: record[key] for key in cls.__dataclass_fields__ if key in record})


class Suite(Protocol):
    """Probes that are asked in one way."""

    label: Message
    share: float
    """Of the time."""

    @property
    def items(self) -> Sequence[str]:
        """The names of what can be asked, in this order."""
        ...

    def ask(self, model: TrainableModel, items: Sequence[str]) -> list[ProbeResult]:
        """What the model does on them."""
        ...


class NeutralText:
    """Passages that no task is about."""

    label, share = Message("neutral text"), 0.15

    def __init__(self) -> None:
        self.passages: dict[str, tuple[str, str]] = {}  # name -> language, text
        files = {x: Path(__file__).parent / f"neutral_{x}.txt" for x in LANGUAGES}
        lines = {x: file.read_text(encoding="utf-8").splitlines() for x, file in files.items()}
        for i, texts in enumerate(zip(*lines.values(), strict=True)):
            self.passages |= {f"text_{x}.{i}": (x, text) for x, text in zip(lines, texts)}

    @property
    def items(self) -> Sequence[str]:
        return list(self.passages)

    def ask(self, model: TrainableModel, items: Sequence[str]) -> list[ProbeResult]:
        prompts = [encode_prompt(model.processor, "", [self.passages[x][1]]) for x in items]
        scores = score_options(model, [x.ids for x in prompts], [x.continuations for x in prompts])
        return [self._result(name, -x.log_probs[0]) for name, x in zip(items, scores)]

    def _result(self, name: str, nats: float) -> ProbeResult:
        language, text = self.passages[name]
        return ProbeResult(f"{BITS}_{language}", name, name, nats, len(text.encode()))


class ShortExams:
    """The exams that ship with weitiao, an item of each in turn."""

    label, share = Message("exams"), 0.3

    def __init__(self, exams: Sequence[PreparedExam], max_length: int | None) -> None:
        """
        Args:
            max_length: the model's context in tokens.
        """
        self.exams, self.max_length = {x.exam.name: x for x in exams}, max_length

    @property
    def items(self) -> Sequence[str]:
        shuffled = []
        for name, x in self.exams.items():
            ids = [f"{name}.{item.id}" for item in x.items]
            random.Random(0).shuffle(ids)
            shuffled.append(ids)
        return [x for turn in zip_longest(*shuffled) for x in turn if x is not None]

    def ask(self, model: TrainableModel, items: Sequence[str]) -> list[ProbeResult]:
        results = []
        for name, x in self.exams.items():
            own = tuple(item for item in x.items if f"{name}.{item.id}" in items)
            if own:
                part = PreparedExam(x.exam, own, x.examples)
                answered = take_exam(model, part, self.max_length, ExamCache(None)).items
                results += [probe_result(name, y) for y in answered]
        return results


def probe_result(exam: str, item: ItemResult) -> ProbeResult:
    """An exam's item as the result of a probe."""
    return ProbeResult(f"exam.{exam}", item.id, f"{exam}.{item.id}", float(item.correct), options=len(item.logprobs))


class Behaviours:
    """Fixed prompts with a rule each, in the model's chat template."""

    label, share = Message("behaviours"), 0.55

    def __init__(self) -> None:
        self.prompts = {x.id: x for x in behaviour_prompts()}

    @property
    def items(self) -> Sequence[str]:
        return list(self.prompts)

    def ask(self, model: TrainableModel, items: Sequence[str]) -> list[ProbeResult]:
        return [
            ProbeResult(f"behaviour.{what}_{x.prompt.language}", x.prompt.id, x.prompt.id, float(shown), text=x.text)
            for x in answer_prompts(model, [self.prompts[x] for x in items])
            for what, shown in x.shows.items()
        ]


def ask_all(
    model: TrainableModel,
    suites: Sequence[Suite],
    seconds: float | None = None,
    items: Collection[str] | None = None,
    track: Track = lambda x, _: x,
) -> list[ProbeResult]:
    """Every suite's results. The model's mode and the random generators stay unchanged.

    Args:
        seconds: at most about this long, of which each suite has its share and what those before it left; None: no limit.
        items: only these; None: all.
    """
    results, started, share = list[ProbeResult](), time.perf_counter(), 0.0
    for suite in track(suites, Message("what the model knows and does beside the task")):
        share += suite.share
        for part in _chunks([x for x in suite.items if items is None or x in items]):
            results += suite.ask(model, part)
            if seconds is not None and time.perf_counter() - started > share * seconds:
                break
    return results


def left_out(suites: Sequence[Suite], results: Sequence[ProbeResult]) -> list[Message]:
    """How many items of which suites were not asked."""
    items, notes = {x.item for x in results}, []
    for suite in suites:
        n, total = len(items.intersection(suite.items)), len(suite.items)
        if n < total:
            notes.append(Message("{what}: {n} of {total} items asked", what=suite.label, n=n, total=total))
    return notes


def _chunks(items: Sequence[str]) -> list[Sequence[str]]:
    return [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
