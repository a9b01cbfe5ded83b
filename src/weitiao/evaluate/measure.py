"""Measure a model on held-out rows: losses, choices among known answers, freely written answers."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Example, Turn
from weitiao.core.metric import Metric
from weitiao.core.objective import Objective, Predictor
from weitiao.core.registry import create
from weitiao.core.score import Score, weighted
from weitiao.core.trainable_model import PrefixCache, TrainableModel

CHOSEN_AT_ONCE, WRITTEN_AT_ONCE = 16, 32  # prompts in a batch
Progress = Callable[[Sequence[Any], str], Any]


@dataclass
class Measured:
    """Scores by name, and what they were made from."""

    scores: dict[str, Score] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    chosen: list[str] = field(default_factory=list)
    predicted: list[tuple[Any, Example]] = field(default_factory=list)
    tasks: dict[str, "Measured"] = field(default_factory=dict)
    """Of several tasks, what was measured of each."""
    outcomes: dict[str, list] = field(default_factory=dict)
    """Row by row, in the order of the held-out rows, what the scores were made of: losses and counts; said and right."""


def default_metrics(objective: Objective, eval_set: EvalSet) -> tuple[str, ...]:
    """What fits: the objective's own; accuracy, exact match and F1 where written answers are a closed set. Of several
    tasks each one's: spam.accuracy."""
    if eval_set.tasks:
        each = ((task, default_metrics(objective.part(task), held)) for task, held in eval_set.tasks.items())
        return ("loss", *(f"{task}.{name}" for task, names in each for name in names))
    return (*objective.metrics_for(eval_set.examples), *(("accuracy", "exact_match", "f1") if eval_set.answers else ()))


def measure(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    metrics: Sequence[str],
    limit: int | None = None,
    max_new_tokens: int = 64,
    progress: Progress = lambda items, words: items,
) -> Measured:
    """Scores by name, each with n and interval. The model's mode and the random generators are left as they were.

    Args:
        metrics: of several tasks, task.metric is one task's, and a metric's name alone every task's that has it.
        limit: at most this many rows for metrics that make the model write.
    """
    if not eval_set.tasks:
        return _measure(model, objective, eval_set, metrics, limit, max_new_tokens, progress)
    whole, losses = Measured(), []
    for task, mine in eval_set.tasks.items():
        part = objective.part(task)
        wanted = dict.fromkeys(("loss", *(_of_task(name, task, part) for name in metrics)))
        tell = lambda items, words, task=task: progress(items, f"{task}: {words}")  # noqa: E731
        names = [name for name in wanted if name]
        found = _measure(model.for_task(task), part, mine, names, limit, max_new_tokens, tell)
        losses.append((objective.weight(task), found.scores["loss"]))  # pyright: ignore[reportAttributeAccessIssue]
        whole.scores |= {f"{task}.{name}": replace(x, name=f"{task}.{name}") for name, x in found.scores.items()}
        whole.outcomes |= {f"{task}.{name}": x for name, x in found.outcomes.items()}
        whole.tasks[task] = found
    whole.scores = {"loss": weighted("loss", losses), **whole.scores}
    return whole


def _of_task(name: str, task: str, part: Objective) -> str:
    """A metric as asked for -> its name, if this task is meant; else ""."""
    asked, _, metric = name.rpartition(".")
    return (
        metric if asked == task or (not asked and metric in (*part.traits.metrics, *part.traits.optional_metrics)) else ""
    )


def _measure(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    metrics: Sequence[str],
    limit: int | None,
    max_new_tokens: int,
    progress: Progress,
) -> Measured:
    """Of one task."""
    parts = [create(Metric, name) for name in metrics]
    wanted = {part.reads for part in parts}  # pyright: ignore[reportAttributeAccessIssue]
    chats = [x for x in eval_set.examples if isinstance(x, Chat)][:limit]
    pairs: dict[str, list] = {"row_losses": [], "choices": [], "answers": []}
    result = Measured()
    predicts = (objective.traits.has_predict or not objective.traits.generative) and bool(wanted & {"choices", "answers"})
    some = limit if objective.traits.needs_encoder_decoder else None
    said, told = _look(model, objective, eval_set, progress, predicts, "row_losses" in wanted, some)
    pairs["row_losses"] = [loss for _, loss in sorted(told)]
    if predicts:
        result.predicted = _joined(model, objective, eval_set, said)[:some]
        pairs["choices"] = pairs["answers"] = objective.metric_pairs(result.predicted)
        wanted -= {"choices", "answers"}
    with model.evaluating(), torch.no_grad():
        if "choices" in wanted and eval_set.answers:
            result.chosen = choose(model, chats, eval_set.answers, progress)
            pairs["choices"] = [(chosen, x.answer) for chosen, x in zip(result.chosen, chats)]
        if "answers" in wanted:
            result.written = write(model, chats, max_new_tokens, progress)
            pairs["answers"] = [(said, x.answer) for said, x in zip(result.written, chats)]
    for part in parts:
        result.scores[part.name] = part.score(pairs[part.reads])  # pyright: ignore[reportAttributeAccessIssue]
    result.outcomes = {
        name: found for name, found in pairs.items() if found and (name, found) != ("answers", pairs["choices"])
    }
    return result


def predict(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    progress: Progress = lambda x, _: x,
    limit: int | None = None,
) -> list[tuple[Any, Example]]:
    """What the objective says of each held-out example, in their order, joined where it was read in windows.

    Args:
        limit: of the first so many examples alone.
    """
    said, _ = _look(model, objective, eval_set, progress, predicts=True, scores=False, limit=limit)
    return _joined(model, objective, eval_set, said)[:limit]


def _look(
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet,
    progress: Progress,
    predicts: bool,
    scores: bool,
    limit: int | None,
) -> tuple[dict[int, Any], list[tuple[int, Any]]]:
    """Of each row, what is said of it and its loss: where both are wanted, a batch runs through the body once.

    Args:
        limit: what is said, of the first so many examples alone.
    """
    said, told = dict[int, Any](), list[tuple[int, Any]]()
    batches = [(x, predicts and (limit is None or min(x.row_ids) < limit)) for x in eval_set.batches()]
    batches = [(x, asked) for x, asked in batches if asked or scores]
    with model.evaluating(), torch.no_grad():
        for batch, asked in progress(batches, "predictions" if predicts else "losses") if batches else ():
            batch = batch.to(model.device)
            with model.caching() if asked and scores else nullcontext():
                said |= zip(batch.row_ids, objective.predict(model, batch)) if asked else ()
                told += zip(batch.row_ids, objective.segment_losses(model, batch)) if scores else ()
    return said, told


def _joined(
    model: TrainableModel, objective: Predictor, eval_set: EvalSet, said: dict[int, Any]
) -> list[tuple[Any, Example]]:
    """What is said of each example, of what is said of its rows."""
    found: list[tuple[Any, Example]] = []
    for _, rows in groupby(sorted(said), key=lambda row: id(eval_set.example_of(row))):
        each = list(rows)
        example = eval_set.example_of(each[0])
        found.append((objective.merge_windows([said[row] for row in each], example, model.processor), example))
    return found


def write(model: TrainableModel, examples: Sequence[Example], room: int, progress: Progress = lambda x, _: x) -> list[str]:
    """Greedy answers to the examples' prompts; for plain text, how its beginning goes on."""
    prompts = [prompt_ids(model, x) for x in examples]
    answers = [""] * len(prompts)
    for chunk in progress(by_length(prompts, WRITTEN_AT_ONCE), "answers"):
        for i, ids in zip(chunk, model.generate([prompts[i] for i in chunk], room)):
            answers[i] = model.processor.decode(ids).strip()
    return answers


def prompt_ids(model: TrainableModel, example: Example) -> list[int]:
    """What the model is given."""
    if not isinstance(example, Chat):
        return model.processor.text(example.full_text)[:32]
    return model.processor.prompt(example.prompt)


@torch.no_grad()
def choose(model: TrainableModel, chats: Sequence[Chat], answers: Sequence[str], progress: Progress) -> list[str]:
    """For each conversation, the most probable of the answers. What all prompts begin with is run once."""
    stop = model.processor.stop_ids[0]
    prompts = [model.prompted(model.processor.prompt(x.prompt)) for x in chats]
    options = [_answer_ids(model, chats[0].prompt, answer, stop) for answer in answers]
    known = remember(model, prompts)
    chosen = [""] * len(prompts)
    for chunk in progress(by_length(prompts, CHOSEN_AT_ONCE), "choices"):
        for i, scores in zip(chunk, model.score_options([prompts[i] for i in chunk], options, known)):
            chosen[i] = answers[max(range(len(answers)), key=lambda k: scores[k])]
    return chosen


def by_length(prompts: Sequence[Sequence[int]], together: int) -> list[list[int]]:
    """Indices of the prompts in batches of like length."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return [order[at : at + together] for at in range(0, len(order), together)]


def remember(model: TrainableModel, prompts: Sequence[Sequence[int]]) -> PrefixCache:
    """Keys and values of the longest common beginning (at least one token of each prompt is left to run)."""
    shortest = min(map(len, prompts)) - 1
    length = next((i for i in range(shortest) if len({p[i] for p in prompts}) > 1), shortest)
    if length == 0:
        return PrefixCache(0, None)
    ids = torch.tensor([list(prompts[0][:length])], device=model.device)
    return PrefixCache(length, model.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)


def _answer_ids(model: TrainableModel, prompt: Any, answer: str, stop: int) -> list[int]:
    """An answer as the model would write it, stop token included."""
    rendered = model.processor.chat((*prompt, Turn("assistant", answer)))[-1]
    begin = len(model.processor.prompt(prompt))
    ids = [token for token, said in zip(rendered.ids[begin:], rendered.assistant_mask[begin:]) if said]
    return ids if ids and ids[-1] in model.processor.stop_ids else [*ids, stop]
