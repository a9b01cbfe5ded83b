"""Evaluate a model on held-out rows: losses, the most probable of a closed set of answers, generated answers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Example, Turn
from weitiao.core.generation import Answer, OptionScores, decoded, generate, new_engine, num_positions, score_options
from weitiao.core.metric import Metric
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.core.score import Score, weighted_sum
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.evaluate.annotate import annotated

GENERATION_BATCH = 128  # prompts that wait for the engine together
KEPT_PREDICTIONS = 32  # whole ones, for samples
Progress = Callable[[Sequence[Any], str], Any]


@dataclass
class Measured:
    """Scores by name, and the row results they were computed from."""

    scores: dict[str, Score] = field(default_factory=dict)
    generated: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    predictions: list[tuple[Any, Example]] = field(default_factory=list)
    """(prediction, example) of the first rows."""
    tasks: dict[str, "Measured"] = field(default_factory=dict)
    """With several tasks, the results of each."""
    row_results: dict[str, list] = field(default_factory=dict)
    """Per metric input, one entry per held-out row in order: (loss sum, count), or (prediction, reference)."""


def default_metrics(objective: Objective, eval_set: EvalSet) -> tuple[str, ...]:
    """The objective's own metrics; plus accuracy, exact match and F1 where the answers are a closed set. With several
    tasks, those of each task: spam.accuracy."""
    if eval_set.tasks:
        by_task = ((task, default_metrics(objective.part(task), rows)) for task, rows in eval_set.tasks.items())
        return ("loss", *(f"{task}.{name}" for task, names in by_task for name in names))
    return (*objective.metrics_for(eval_set.examples), *(("accuracy", "exact_match", "f1") if eval_set.answers else ()))


def measure(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    metrics: Sequence[str],
    limit: int | None = None,
    max_new_tokens: int = 64,
    progress: Progress = lambda items, description: items,
) -> Measured:
    """Scores by name, each with n and a 95 % interval. The model's mode and the random generators stay unchanged.

    Args:
        metrics: with several tasks, "task.metric" is one task's; a bare name is evaluated for every task that has it.
        limit: at most this many rows for metrics that need generation.
    """
    if not eval_set.tasks:
        return _measure_task(model, objective, eval_set, metrics, limit, max_new_tokens, progress)
    total, losses = Measured(), []
    for task, rows in eval_set.tasks.items():
        part = objective.part(task)
        names = [x for x in dict.fromkeys(("loss", *(_metric_of_task(name, task, part) for name in metrics))) if x]
        task_progress = lambda items, description, task=task: progress(items, f"{task}: {description}")  # noqa: E731
        result = _measure_task(model.for_task(task), part, rows, names, limit, max_new_tokens, task_progress)
        losses.append((objective.weight(task), result.scores["loss"]))  # pyright: ignore[reportAttributeAccessIssue]
        total.scores |= {f"{task}.{name}": replace(x, name=f"{task}.{name}") for name, x in result.scores.items()}
        total.row_results |= {f"{task}.{name}": x for name, x in result.row_results.items()}
        total.tasks[task] = result
    total.scores = {"loss": weighted_sum("loss", losses), **total.scores}
    return total


def _metric_of_task(name: str, task: str, part: Objective) -> str:
    """The metric's name without its task, if it is requested for this task; else ""."""
    requested_task, _, metric = name.rpartition(".")
    available = (*part.traits.metrics, *part.traits.optional_metrics)
    return metric if requested_task == task or (not requested_task and metric in available) else ""


def _measure_task(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    metrics: Sequence[str],
    limit: int | None,
    max_new_tokens: int,
    progress: Progress,
) -> Measured:
    """The scores of one task."""
    requested = [create(Metric, name) for name in metrics]
    inputs = {metric.reads for metric in requested}
    chats = [x for x in eval_set.examples if isinstance(x, Chat)][:limit]
    pairs: dict[str, list] = {"row_losses": [], "choices": [], "answers": []}
    result = Measured()
    predicts = (objective.traits.has_predict or not objective.traits.generative) and bool(inputs & {"choices", "answers"})
    max_rows = limit if objective.traits.needs_encoder_decoder else None
    forward = _Forward(model, objective, eval_set, predicts, "row_losses" in inputs, max_rows)
    forward.run(progress)
    pairs["row_losses"] = forward.losses
    if predicts:
        result.predictions = forward.first
        pairs["choices"] = pairs["answers"] = forward.pairs()
        inputs -= {"choices", "answers"}
    with evaluating(model), torch.no_grad():
        scored: list[OptionScores] = []
        if "choices" in inputs and eval_set.answers:
            scored = choose(model, chats, eval_set.answers, progress)
            result.chosen = [eval_set.answers[x.best] for x in scored]
            pairs["choices"] = [(chosen, x.answer) for chosen, x in zip(result.chosen, chats)]
        if "answers" in inputs:
            result.generated = generate_answers(model, chats, max_new_tokens, progress, scored)
            pairs["answers"] = [(text, x.answer) for text, x in zip(result.generated, chats)]
    for metric in requested:
        score = metric.score(pairs[metric.reads])
        result.scores[metric.name] = annotated(score, metric.reads, pairs[metric.reads], eval_set, model, objective)
    result.row_results = {
        name: rows for name, rows in pairs.items() if rows and (name, rows) != ("answers", pairs["choices"])
    }
    return result


def predict(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    progress: Progress = lambda x, _: x,
    limit: int | None = None,
) -> list[tuple[Any, Example]]:
    """(prediction, example) of each held-out example in order; predictions of overlapping windows are merged.

    Args:
        limit: only the first `limit` examples.
    """
    forward = _Forward(model, objective, eval_set, predicts=True, scores=False, limit=limit)
    return [pair for batch in forward.batches(progress) for pair in batch][:limit]


class _Forward:
    """One pass over the held-out rows. Where both predictions and losses are needed, each batch runs through the backbone
    once. Of a prediction only what the metrics compare is kept, so that memory does not grow with scores [units, classes].
    """

    def __init__(
        self,
        model: TrainableModel,
        objective: Objective,
        eval_set: EvalSet,
        predicts: bool,
        scores: bool,
        limit: int | None,
    ) -> None:
        """
        Args:
            predicts: whether predictions are needed.
            scores: whether losses are needed.
            limit: predict only the first `limit` examples.
        """
        self.model, self.objective, self.eval_set = model, objective, eval_set
        self.predicts, self.scores, self.limit = predicts, scores, limit
        self.losses: list[Any] = []
        """The loss of each row."""
        self.first: list[tuple[Any, Example]] = []
        """(prediction, example) of the first examples."""
        self._metric_pairs: list[tuple[Any, Any]] = []
        self._predicted: list[tuple[Any, Example]] = []

    def run(self, progress: Progress) -> None:
        """The whole pass."""
        ranked = self.objective.traits.ranks_together
        for batch in self.batches(progress):
            batch = batch[: None if self.limit is None else max(0, self.limit - self.num_predicted)]
            self.first += batch[: max(0, KEPT_PREDICTIONS - len(self.first))]
            if ranked:
                self._predicted += batch
            else:
                self._metric_pairs += self.objective.metric_pairs(batch)

    @property
    def num_predicted(self) -> int:
        return len(self._predicted) + len(self._metric_pairs)

    def pairs(self) -> list[tuple[Any, Any]]:
        """What the metrics compare, of each example in order."""
        return self.objective.metric_pairs(self._predicted) if self._predicted else self._metric_pairs

    def batches(self, progress: Progress) -> Iterator[list[tuple[Any, Example]]]:
        """(prediction, example) of the examples that each batch completes; losses are collected on the way."""
        model, objective, batches = self.model, self.objective, self.eval_set.batches()
        windows: list[Any] = []  # of an example whose last row has not come yet
        example: Example | None = None
        with evaluating(model), torch.no_grad():
            for i in progress(range(len(batches)), "predictions" if self.predicts else "losses") if self._is_needed else ():
                batch = batches[i].to(model.device)
                predicts = self.predicts and (self.limit is None or min(batch.row_ids) < self.limit)
                if not predicts and not self.scores:
                    break
                with model.cache.on() if predicts and self.scores else nullcontext():
                    predictions = dict(zip(batch.row_ids, objective.predict(model, batch))) if predicts else {}
                    losses = dict(zip(batch.row_ids, objective.segment_losses(model, batch))) if self.scores else {}
                self.losses += [losses[row] for row in sorted(losses)]
                complete: list[tuple[Any, Example]] = []
                for row, prediction in sorted(predictions.items(), key=lambda pair: pair[0]):
                    now = self.eval_set.example_of(row)
                    if example is not None and now is not example:
                        complete.append(self._merged(windows, example))
                        windows = []
                    example = now
                    windows.append(prediction)
                yield complete
        if example is not None:
            yield [self._merged(windows, example)]

    @property
    def _is_needed(self) -> bool:
        return self.predicts or self.scores

    def _merged(self, windows: list[Any], example: Example) -> tuple[Any, Example]:
        """The prediction of an example, from those of its rows (several where it was split in windows)."""
        return self.objective.merge_windows(windows, example, self.model.processor), example


def generate_answers(
    model: TrainableModel,
    examples: Sequence[Example],
    max_new_tokens: int,
    progress: Progress = lambda x, _: x,
    scored: Sequence[OptionScores] = (),
) -> list[str]:
    """Greedy answers to the examples' prompts; for plain text, a continuation of its first tokens.

    Args:
        scored: the scores of a closed set of answers to the same examples: where the most probable tokens are one of them
            to its end, it is the answer, and nothing is generated.
    """
    prompts = [prompt_ids(model, x, max_new_tokens) for x in examples]
    answers = [""] * len(prompts)
    known = {i for i, x in enumerate(scored) if x.ends and len(x.greedy) < max_new_tokens}
    for i in known:
        answers[i] = decoded(model, Answer(scored[i].greedy))
    rest = [i for i in range(len(prompts)) if i not in known]
    engine = new_engine(model) if rest and model.architecture.kind == "decoder" else None
    for chunk in progress(by_length([prompts[i] for i in rest], GENERATION_BATCH), "answers"):
        rows = [rest[k] for k in chunk]
        for i, answer in zip(rows, generate(model, [prompts[i] for i in rows], max_new_tokens, engine=engine)):
            answers[i] = decoded(model, answer)
    return answers


def prompt_ids(model: TrainableModel, example: Example, max_new_tokens: int) -> list[int]:
    """The token ids that the model is prompted with; where positions are few, the end of the prompt, as `truncate` does."""
    if not isinstance(example, Chat):
        return model.processor.text(example.full_text)[:32]
    ids, limit = model.processor.prompt(example.prompt, example.tools), num_positions(model)
    if limit is None or len(ids) + max_new_tokens <= limit:
        return ids
    return ids[-max(limit // 2, limit - max_new_tokens) + len(model.attachment.virtual_tokens()) :]


def choose(
    model: TrainableModel, chats: Sequence[Chat], answers: Sequence[str], progress: Progress = lambda x, _: x
) -> list[OptionScores]:
    """For each conversation, the log-probability of each of the answers."""
    if not chats:
        return []
    stop = model.processor.stop_ids[0]
    options = [_answer_ids(model, chats[0].prompt, answer, stop) for answer in answers]
    prompts = [model.processor.prompt(x.prompt, x.tools) for x in chats]
    return score_options(model, prompts, [options] * len(prompts), progress)


def by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts, in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def _answer_ids(model: TrainableModel, prompt: Any, answer: str, stop: int) -> list[int]:
    """The token ids of an answer as the model would generate it, stop token included."""
    rendered = model.processor.chat((*prompt, Turn("assistant", answer)))[-1]
    begin = len(model.processor.prompt(prompt))
    ids = [token for token, supervised in zip(rendered.ids[begin:], rendered.assistant_mask[begin:]) if supervised]
    return ids if ids and ids[-1] in model.processor.stop_ids else [*ids, stop]
