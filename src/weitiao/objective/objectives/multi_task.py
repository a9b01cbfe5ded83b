"""Several tasks at once: one model, and for each task its own objective, head and rows.

    base: package:all-minilm-l6-v2
    data:
      - {path: spam.jsonl, task: spam}
      - {path: topics.jsonl, task: topics}
    objective:
      name: multi_task
      tasks: {spam: classification, topics: {name: classification, label_smoothing: 0.1}}

                                 spam    rows ──┐            ┌── head of spam      loss 1 ─ x w1 ─┐
                                 topics  rows ──┴── model ───┴── head of topics    loss 2 ─ x w2 ─┴─ sum

    weights: {spam: 1, topics: 0.5}    fixed; tasks that are not named have weight 1
    weights: uncertainty               loss_i exp(-s_i) + s_i / 2, where s_i = log sigma_i^2 is trained: Kendall, Gal and
                                       Cipolla 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
                                       Geometry and Semantics", arXiv 1705.07115, eq. 10
    temperature: T                     a task of n rows is sampled in proportion to n^(1/T): Arivazhagan et al. 2019,
                                       "Massively Multilingual Neural Machine Translation in the Wild", arXiv 1907.05019,
                                       sec. 4.1; 1: as many rows as there are; 5 is common and nearly balances the tasks
    gradients: pcgrad                  where the gradients of two tasks conflict, each loses its component against the
                                       other (train/steps/pcgrad.py)

Each task has its own metrics: spam.accuracy, topics.f1; `loss` is the weighted sum of the tasks' mean losses (trained
weights are logged, and count 1 there). Predict one task of a finished run with `weitiao predict RUN --task spam`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from weitiao.core.batch import Batch, Loss, select_task
from weitiao.core.component_field import ComponentField
from weitiao.core.errors import DataError, InvalidValue, RecipeError, message_of
from weitiao.core.example import Task
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.objective import Objective, RowEncoder
from weitiao.core.plain_form import PlainForm
from weitiao.core.registry import nearest
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.task_rows import TaskRows

WEIGHTS = "weights"  # the head that holds the trained weights of the tasks


class MultiTask(TaskRows, Objective):
    """Train several tasks in one model, each with its own objective and head."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Task,
        generative=False,  # by itself: its tasks may be
        overlong="each",
        overlong_reason=Message("each task as its own objective does"),
    )

    tasks: dict[str, Annotated[Objective, ComponentField("objective", exclude="multi_task")]] = Field(min_length=1)
    """The objective of each task, by the task's name."""
    weights: dict[str, float] | Literal["uncertainty"] = Field(default_factory=dict)
    """Weight of each task's mean loss, default 1; uncertainty: trained (Kendall et al. 2018)."""
    temperature: float = Field(default=1.0, ge=1)
    """How evenly tasks are sampled: 1: as many rows as there are; higher: small tasks more often (n^(1/T))."""
    gradients: Literal["sum", "pcgrad"] = "sum"
    """How the tasks' gradients are combined: added, or added after removing conflicting components (PCGrad)."""

    @field_validator("tasks")
    @classmethod
    def _check_names(cls, tasks: dict[str, Objective]) -> dict[str, Objective]:
        for name in tasks:
            if not name or any(c in name for c in "./ "):
                raise InvalidValue("{name!r} cannot be a task's name: dots, slashes and spaces are not allowed", name=name)
        return tasks

    @model_validator(mode="after")
    def _check_tasks(self) -> "MultiTask":
        for name, weight in (self.weights if isinstance(self.weights, dict) else {}).items():
            if name not in self.tasks:
                raise InvalidValue(
                    "weights: there is no task {name!r}.{hint} There are: {tasks}",
                    name=name,
                    hint=nearest(name, list(self.tasks)),
                    tasks=", ".join(self.tasks),
                )
            if not 0 < weight < float("inf"):
                raise InvalidValue(
                    "weights: {name} is {weight:g}, but must be positive and finite", name=name, weight=weight
                )
        for name, part in self.tasks.items():
            if part.traits.step != "accumulate":
                raise InvalidValue(
                    "tasks: {name} needs step {step}, so it cannot be combined with other tasks",
                    name=name,
                    step=part.traits.step,
                )
        return self

    # -- tasks --------------------------------------------------------------------------------------------------------

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

    def _encoder(self, task: str) -> RowEncoder:
        return self.tasks[task]

    def fit(self, examples: Sequence[Task]) -> "MultiTask":
        fitted: dict[str, Objective] = {}
        for name, part in self.tasks.items():
            own = [x.example for x in examples if x.task == name]
            if not own:
                raise DataError("data: task {name} has no training rows. Give a source task: {name}", name=name)
            try:
                fitted[name] = part.fit(own)
            except DataError as error:
                raise DataError("task {name}: {error}", name=name, error=message_of(error)) from None
        return self.model_copy(update={"tasks": fitted})

    def heads(self, width: int) -> dict[str, nn.Module]:
        """The tasks' trained weights; the tasks' own heads belong to their objectives."""
        return {WEIGHTS: Uncertainty(len(self.tasks))} if self.weights == "uncertainty" else {}

    def plain_form(self, kind: str) -> PlainForm:
        """One folder holds one task."""
        reason = Message("a folder holds one task; name it with --task: {tasks}", tasks=", ".join(self.tasks))
        return PlainForm("scores", obstacle=reason)

    def epoch_weights(self, num_rows: dict[str, int]) -> dict[str, float]:
        if self.temperature == 1 or not any(num_rows.values()):
            return {}
        tempered = {name: num ** (1 / self.temperature) for name, num in num_rows.items() if num}
        scale = sum(num_rows.values()) / sum(tempered.values())
        return {name: scale * x / num_rows[name] for name, x in tempered.items()}

    def choose_head_rate(self) -> Decision | None:
        decisions = {name: x for name, part in self.tasks.items() if (x := part.choose_head_rate())}
        rates = {name: x.value for name, x in decisions.items()}
        if len(set(rates.values())) > 1:
            listed = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
            raise RecipeError("objective: all heads share one head_learning_rate, but there are: {rates}", rates=listed)
        return next(iter(decisions.values()), None)

    def calibrate(self, predictions_of: Callable[[str], Sequence[tuple[Any, Any]]]) -> tuple[Objective, list[Decision]]:
        tuned: dict[str, Objective] = {}
        decisions: list[Decision] = []
        for name, part in self.tasks.items():
            tuned[name], more = part.calibrate(lambda _, name=name: predictions_of(name))
            decisions += [replace(x, key=f"{name}: {x.key}") for x in more]
        return (self.model_copy(update={"tasks": tuned}) if decisions else self), decisions

    # -- loss ---------------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        return {name: sum(self.tasks[name].counts(own).values()) for name, own, _ in _by_task(batch)}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        totals: dict[str, Tensor] = {}
        notes: dict[str, float] = {}
        for name, own, _ in _by_task(batch):
            loss = self.tasks[name].loss(model.for_task(name), own)
            total = torch.stack(list(loss.totals.values())).sum()
            notes[name] = float(total.detach())
            totals[name] = self._weighted(name, total, model, own)
        if self.weights == "uncertainty":  # notes are logged over the window's count
            num = sum(self.counts(batch).values())
            log_variances = model.heads[WEIGHTS]().detach()
            notes |= {f"{name} weight": num * float(torch.exp(-s)) for name, s in zip(self.tasks, log_variances)}
        return Loss(totals, notes)

    def _weighted(self, name: str, total: Tensor, model: TrainableModel, batch: Batch) -> Tensor:
        if self.weights != "uncertainty":
            return total * self.weight(name)
        s = model.heads[WEIGHTS]()[list(self.tasks).index(name)]
        return total * torch.exp(-s) + sum(self.tasks[name].counts(batch).values()) * s / 2

    def task_losses(self, model: TrainableModel, batch: Batch) -> dict[str, float]:
        return {name: float(total.detach()) for name, total in self.loss(model, batch).totals.items()}

    def weight(self, name: str) -> float:
        """The weight of a task's mean loss in the validation loss."""
        return self.weights.get(name, 1.0) if isinstance(self.weights, dict) else 1.0

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        return self._by_segment(model, batch, lambda part, model, own: part.segment_losses(model, own))

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[Any]:
        return self._by_segment(model, batch, lambda part, model, own: part.predict(model, own))

    def _by_segment(self, model: TrainableModel, batch: Batch, compute: Callable[..., list[Any]]) -> list[Any]:
        """A result of each segment, computed by its task's objective."""
        results: list[Any] = [None] * len(batch.lengths)
        for name, own, segments in _by_task(batch):
            for segment, result in zip(segments, compute(self.tasks[name], model.for_task(name), own)):
                results[segment] = result
        return results


class Uncertainty(nn.Module):
    """s = log sigma^2 of each task [K]; initially all weights are 1."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(num_tasks))

    def forward(self) -> Tensor:
        return self.log_variance


def _by_task(batch: Batch) -> Iterator[tuple[str, Batch, list[int]]]:
    """(task, its segments as a batch of their own, which segments they are) in a fixed order."""
    for name in sorted(set(batch.tasks)):
        yield name, *select_task(batch, name)
