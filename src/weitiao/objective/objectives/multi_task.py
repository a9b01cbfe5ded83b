"""Several tasks at once: one model, and for each task an objective, a head and rows of its own.

    base: package:all-minilm-l6-v2
    data:
      - {path: spam.jsonl, task: spam}
      - {path: topics.jsonl, task: topics}
    objective:
      name: multi_task
      tasks: {spam: classification, topics: {name: classification, label_smoothing: 0.1}}

                                 spam    rows ──┐            ┌── head of spam      loss 1 ─ x w1 ─┐
                                 topics  rows ──┴── model ───┴── head of topics    loss 2 ─ x w2 ─┴─ sum

    weights: {spam: 1, topics: 0.5}    fixed; what is not named counts 1
    weights: uncertainty               loss_i exp(-s_i) + s_i / 2, with s_i = log sigma_i^2 learnt: Kendall, Gal and
                                       Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
                                       Geometry and Semantics", arXiv 1705.07115, eq. 10
    temperature: T                     a task of n rows is met in proportion to n^(1/T): Arivazhagan et al. 2019,
                                       "Massively Multilingual Neural Machine Translation in the Wild", arXiv 1907.05019,
                                       sec. 4.1; 1: as many rows as there are; 5 is usual, and nearly evens them out
    gradients: pcgrad                  where two tasks' gradients point apart, each gives up what harms the other
                                       (train/steps/pcgrad.py)

Each task is measured by its own metrics: spam.accuracy, topics.f1; `loss` is the weighted sum of the tasks' mean losses
(learnt weights are in the journal, and count 1 there).
Ask a finished run with `weitiao predict RUN --task spam`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from weitiao.core.batch import Batch, Loss, Row, select_segments, task_of
from weitiao.core.component_field import ComponentField
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import Task
from weitiao.core.finding import Decision
from weitiao.core.objective import Objective, Preview
from weitiao.core.processor import Processor
from weitiao.core.registry import nearest
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits

WEIGHTS = "weights"  # the head that holds what is learnt of how much each task counts


class MultiTask(Objective):
    """Learn several tasks in one model, each with its own objective and head."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Task,
        generative=False,  # not by itself: its tasks may be
        overlong="each",
        overlong_reason="each task in its own way",
    )

    tasks: dict[str, Annotated[Objective, ComponentField("objective", exclude="multi_task")]] = Field(min_length=1)
    """Each task's name, and its objective."""
    weights: dict[str, float] | Literal["uncertainty"] = Field(default_factory=dict)
    """How much each task's mean loss counts; those not named count 1; uncertainty: by how uncertain each one is."""
    temperature: float = Field(default=1.0, ge=1)
    """How evenly tasks are met: 1 as many rows as there are, more: the small ones oftener (n^(1/T))."""
    gradients: Literal["sum", "pcgrad"] = "sum"
    """How the tasks' gradients become one: added, or added after what conflicts was taken out (PCGrad)."""

    @field_validator("tasks")
    @classmethod
    def _plain_names(cls, tasks: dict[str, Objective]) -> dict[str, Objective]:
        if odd := next((x for x in tasks if not x or any(c in x for c in "./ ")), None):
            raise ValueError(f"{odd!r} is no name for a task: no dots, slashes or spaces")
        return tasks

    @model_validator(mode="after")
    def _known(self) -> "MultiTask":
        if isinstance(self.weights, dict):
            for name, weight in self.weights.items():
                if name not in self.tasks:
                    raise ValueError(f"weights: there is no task {name!r}.{nearest(name, list(self.tasks))}")
                if not 0 < weight < float("inf"):
                    raise ValueError(f"weights: {name} is {weight:g}; a task that counts is more than 0, and finite")
        for name, part in self.tasks.items():
            if part.traits.step != "accumulate":
                raise ValueError(
                    f"tasks: {name} takes its steps in its own way ({part.traits.step}), so it must learn alone"
                )
        return self

    # -- what follows from the tasks ----------------------------------------------------------------------------------

    @property
    def traits(self) -> Traits:
        """What any task needs is needed; what all tasks can do can be done."""
        tasks = [part.traits for part in self.tasks.values()]
        return replace(
            self.default_traits,
            generative=any(x.generative for x in tasks),
            batch_coupled=any(x.batch_coupled for x in tasks),
            needs_mlm_head=any(x.needs_mlm_head for x in tasks),
            splittable=all(x.splittable for x in tasks),
            step="pcgrad" if self.gradients == "pcgrad" else "accumulate",
        )

    def parts(self) -> dict[str, Objective]:
        return self.tasks

    def fit(self, examples: Sequence[Task]) -> "MultiTask":  # pyright: ignore[reportIncompatibleMethodOverride]
        known: dict[str, Objective] = {}
        for name, part in self.tasks.items():
            mine = [x.example for x in examples if x.task == name]
            if not mine:
                raise DataError(f"data: task {name} has not one row to learn from. Name a source with task: {name}.")
            try:
                known[name] = part.fit(mine)
            except DataError as error:
                raise DataError(f"task {name}: {error}") from None
        return self.model_copy(update={"tasks": known})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """What is learnt of the tasks' weights; the tasks' own heads are theirs."""
        return {WEIGHTS: Uncertainty(len(self.tasks))} if self.weights == "uncertainty" else {}

    def epoch_weights(self, rows: dict[str, int]) -> dict[str, float]:
        if self.temperature == 1 or not any(rows.values()):
            return {}
        tempered = {name: many ** (1 / self.temperature) for name, many in rows.items() if many}
        scale = sum(rows.values()) / sum(tempered.values())
        return {name: scale * x / rows[name] for name, x in tempered.items()}

    def choose_head_rate(self) -> Decision | None:
        rates = {name: x.value for name, part in self.tasks.items() if (x := part.choose_head_rate())}
        if len(set(rates.values())) > 1:
            words = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
            raise RecipeError(f"objective: all heads learn at one rate, and here are several: {words}.")
        words = "the tasks' heads begin at random and may learn faster than what is pretrained"
        return Decision("objective.head_learning_rate", next(iter(rates.values())), words) if rates else None

    def calibrate(self, ask: Callable[[str], Sequence[tuple[Any, Any]]]) -> tuple[Objective, list[Decision]]:
        known: dict[str, Objective] = {}
        told: list[Decision] = []
        for name, part in self.tasks.items():
            known[name], more = part.calibrate(lambda _, name=name: ask(name))
            told += [replace(x, key=f"{name}: {x.key}") for x in more]
        return (self.model_copy(update={"tasks": known}) if told else self), told

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: Task, processor: Processor) -> list[Row]:
        return [_of(example.task, row) for row in self.tasks[example.task].rows(example.example, processor)]

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        kept, lost = self._owner(row).cut(row, max_length)
        return _of(task_of(row), kept), lost

    def overlong_of(self, row: Row) -> str:
        return self._owner(row).overlong_of(row)

    def num_positions(self, row: Row) -> int:
        return self._owner(row).num_positions(row)

    def windows(self, row: Row, max_length: int) -> list[Row]:
        return [_of(task_of(row), piece) for piece in self._owner(row).windows(row, max_length)]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        return self._owner(row).preview(row, lost, processor)

    def _owner(self, row: Row) -> Objective:
        return self.tasks[task_of(row)]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        return {name: sum(self.tasks[name].counts(mine).values()) for name, mine, _ in each_task(batch)}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        totals: dict[str, Tensor] = {}
        notes: dict[str, float] = {}
        for name, mine, _ in each_task(batch):
            found = self.tasks[name].loss(model.for_task(name), mine)
            total = torch.stack(list(found.totals.values())).sum()
            notes[name] = float(total.detach())
            totals[name] = self._weighed(name, total, model, mine)
        if self.weights == "uncertainty":  # the journal has notes over the window's count
            many = sum(self.counts(batch).values())
            learnt = model.heads[WEIGHTS]().detach()
            notes |= {f"{name} weight": many * float(torch.exp(-s)) for name, s in zip(self.tasks, learnt)}
        return Loss(totals, notes)

    def _weighed(self, name: str, total: Tensor, model: TrainableModel, batch: Batch) -> Tensor:
        if self.weights != "uncertainty":
            return total * self.weight(name)
        s = model.heads[WEIGHTS]()[list(self.tasks).index(name)]
        return total * torch.exp(-s) + sum(self.tasks[name].counts(batch).values()) * s / 2

    def task_losses(self, model: TrainableModel, batch: Batch) -> dict[str, float]:
        return {name: float(total.detach()) for name, total in self.loss(model, batch).totals.items()}

    def weight(self, name: str) -> float:
        """How much a task's mean loss counts in what is validated."""
        return self.weights.get(name, 1.0) if isinstance(self.weights, dict) else 1.0

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        return self._row_by_row(model, batch, lambda part, model, mine: part.segment_losses(model, mine))

    def predict(self, model: TrainableModel, batch: Batch) -> list[Any]:
        return self._row_by_row(model, batch, lambda part, model, mine: part.predict(model, mine))

    def _row_by_row(self, model: TrainableModel, batch: Batch, ask: Callable[..., list[Any]]) -> list[Any]:
        found: list[Any] = [None] * len(batch.lengths)
        for name, mine, rows in each_task(batch):
            for row, said in zip(rows, ask(self.tasks[name], model.for_task(name), mine)):
                found[row] = said
        return found


class Uncertainty(nn.Module):
    """s = log sigma^2 of each task [K]; at first all count alike."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(tasks))

    def forward(self) -> Tensor:
        return self.log_variance


def each_task(batch: Batch) -> Iterator[tuple[str, Batch, list[int]]]:
    """(task, its rows as a batch of their own, which rows they are) in a fixed order."""
    for name in sorted(set(batch.tasks)):
        rows = [i for i, task in enumerate(batch.tasks) if task == name]
        yield name, batch if len(rows) == len(batch.tasks) else select_segments(batch, rows), rows


def _of(task: str, row: Row) -> Row:
    return {**row, "task": task}  # pyright: ignore[reportReturnType]
