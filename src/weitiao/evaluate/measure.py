"""Evaluate a model on held-out rows: losses, the most probable of a closed set of answers, generated answers."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from weitiao.core.errors import DataError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Example
from weitiao.core.generation import Answer, decoded, generate, new_engine, num_positions
from weitiao.core.metric import COLUMNS, OPTIONAL_COLUMNS, ColumnMetric, Metric, Reads
from weitiao.core.objective import Objective
from weitiao.core.option_scores import OptionScores
from weitiao.core.recipe_sections import Evaluate
from weitiao.core.registry import create
from weitiao.core.score import Clusters, Score, weighted_sum
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.evaluate.annotate import annotated
from weitiao.evaluate.choices import Choices, choose
from weitiao.evaluate.class_report import class_report
from weitiao.evaluate.forward_pass import LOSSES, PREDICTED, ForwardPass, Progress

GENERATION_BATCH = 128  # prompts that wait for the engine together
ANSWERS: set[Reads] = {"answers", *COLUMNS}
CHOICES: set[Reads] = {"choices", "probabilities"}


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
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By task ("" where there is one), what is behind the scores of classes: see evaluate/class_report.py."""
    row_results: dict[str, list] = field(default_factory=dict)
    """Per metric input, one entry per held-out row in order: (loss sum, count), (prediction, reference), or for a column
    (prediction, its value)."""


def default_metrics(objective: Objective, eval_set: EvalSet) -> tuple[str, ...]:
    """The objective's own metrics; plus accuracy, exact match and F1 where the answers are a closed set. With several
    tasks, those of each task: spam.accuracy."""
    if eval_set.tasks:
        by_task = ((task, default_metrics(objective.part(task), rows)) for task, rows in eval_set.tasks.items())
        return ("loss", *(f"{task}.{name}" for task, names in by_task for name in names))
    return (*objective.metrics_for(eval_set.examples), *(("accuracy", "exact_match", "f1") if eval_set.answers else ()))


def requested_metrics(settings: Evaluate, objective: Objective, eval_set: EvalSet) -> tuple[str, ...]:
    """The metrics that a recipe names, or those that fit."""
    return default_metrics(objective, eval_set) if settings.metrics == "auto" else settings.metrics


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
        if result.classes:
            total.classes[task] = result.classes[""]
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
    inputs: set[Reads] = {metric.reads for metric in requested}
    predicts = objective.traits.has_predict or not objective.traits.generative
    of_forward = inputs if predicts else inputs & LOSSES
    result, chats = Measured(), [x for x in eval_set.examples if isinstance(x, Chat)][:limit]
    chooses = not predicts and inputs & CHOICES and eval_set.answers
    choices = choose(model, chats, eval_set.answers, progress) if chooses else Choices()
    forward_limit = limit if objective.traits.needs_encoder_decoder else None
    known_loss = choices.loss if objective.traits.is_nll else None
    forward = ForwardPass(model, objective, eval_set, of_forward, forward_limit, known_loss)
    forward.run(progress)
    pairs: dict[str, list] = {"row_losses": forward.losses if "row_losses" in inputs else []}
    pairs["row_bytes"] = [(nats, count) for (nats, _), count in zip(forward.losses, forward.num_bytes)]
    if predicts and inputs & PREDICTED:
        result.predictions = forward.first
        answers = forward.pairs()
        pairs |= {"choices": answers, "answers": answers, "probabilities": forward.probabilities}
        pairs["rankings"] = forward.rankings() if "rankings" in inputs else []
    elif inputs & PREDICTED:
        pairs |= _answered(model, eval_set.answers, chats, choices.scores, inputs, max_new_tokens, progress, result)
    for column in inputs & {*COLUMNS}:
        pairs[column] = with_column([text for text, _ in pairs["answers"]], eval_set, column)
    for metric in requested:
        rows = pairs.get(metric.reads, [])
        if isinstance(metric, ColumnMetric):
            rows = result.row_results[metric.reads] = metric.judged(rows)
        elif metric.reads in COLUMNS:
            result.row_results[metric.reads] = rows
        score = metric.score(rows, _clusters(metric.reads, rows, eval_set, forward))
        result.scores[metric.name] = annotated(score, metric.reads, rows, eval_set, model, objective)
    compared = pairs.get("choices") or pairs.get("answers", [])
    texts = [x.input_text for x in eval_set.examples[: len(compared)]]
    if report := class_report(compared, pairs.get("probabilities", []), texts):
        result.classes = {"": report}
    recorded = ("row_losses", "choices", "answers")
    result.row_results |= {
        name: rows for name in recorded if (rows := pairs.get(name)) and (name, rows) != ("answers", pairs.get("choices"))
    }
    return result


def _answered(
    model: TrainableModel,
    answers: Sequence[str],
    chats: Sequence[Chat],
    scored: Sequence[OptionScores],
    inputs: set[Reads],
    max_new_tokens: int,
    progress: Progress,
    result: Measured,
) -> dict[str, list]:
    """The pairs of a model that generates: the most probable of a closed set of answers, and generated ones."""
    pairs: dict[str, list] = {"choices": [], "probabilities": [], "answers": []}
    if scored:
        result.chosen = [answers[x.best] for x in scored]
        pairs["choices"] = [(chosen, x.answer) for chosen, x in zip(result.chosen, chats)]
        shares = (torch.tensor(x.log_probs, dtype=torch.float64).softmax(0).tolist() for x in scored)
        pairs["probabilities"] = [(dict(zip(answers, p)), x.answer) for p, x in zip(shares, chats)]
    if inputs & ANSWERS:
        with evaluating(model), torch.no_grad():
            result.generated = generate_answers(model, chats, max_new_tokens, progress, scored)
        pairs["answers"] = [(text, x.answer) for text, x in zip(result.generated, chats)]
    return pairs


def with_column(answers: Sequence[str], eval_set: EvalSet, column: str) -> list[tuple[str, Any]]:
    """(answer, what the row's column holds) of the first rows.

    Raises:
        DataError: a row has no such column.
    """
    cells = [x.get(column, "" if column in OPTIONAL_COLUMNS else None) for x in eval_set.columns[: len(answers)]]
    if missing := len(answers) - sum(x is not None for x in cells):
        raise DataError(
            "evaluate.metrics: {n:,} of {total:,} rows have nothing in a column {column!r}, which a metric reads",
            n=missing,
            total=len(answers),
            column=column,
        )
    return [(answer, str(cell)) for answer, cell in zip(answers, cells)]


def _clusters(reads: Reads, rows: Sequence[Any], eval_set: EvalSet, forward: ForwardPass) -> Clusters:
    """What the rows of a metric belong to: windows of one example, and examples of one group; (): none belong together."""
    groups = eval_set.groups
    if reads in LOSSES:
        if not groups:
            return forward.row_examples if len(set(forward.row_examples)) < len(rows) else ()
        group_of = {id(x): group for x, group in zip(eval_set.examples, groups)}
        return [group_of[id(eval_set.example_of(row))] for row in range(len(rows))]
    if reads == "rankings" and forward.objective.traits.ranks_together:
        return groups_of_queries(eval_set)
    return groups[: len(rows)]


def groups_of_queries(eval_set: EvalSet) -> Clusters:
    """The group of each different query, that of its first row; (): no row has one."""
    group_of: dict[str, Hashable] = {}
    for x, group in zip(eval_set.examples, eval_set.groups):
        group_of.setdefault(x.input_text, group)
    return list(group_of.values())


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
    forward = ForwardPass(model, objective, eval_set, {"answers"}, limit)
    return [pair for batch in forward.batches(progress) for pair in batch][:limit]


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


def by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Indices of the prompts, in batches of similar length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
