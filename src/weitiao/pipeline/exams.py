"""Exams taken: by any model, or before and after training with the results kept in the Run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from weitiao.core.batch import IGNORE, Row, pack
from weitiao.core.errors import DataError
from weitiao.core.files import home, write_text
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.data.read import read_sources
from weitiao.evaluate.contamination import contaminated_items
from weitiao.evaluate.exam_cache import ExamCache
from weitiao.evaluate.exam_items import PreparedExam
from weitiao.evaluate.exam_result import ExamResult, with_contamination
from weitiao.evaluate.exam_run import take_exam
from weitiao.pipeline.exam_data import open_exams
from weitiao.pipeline.inference import Model, open_model
from weitiao.plan.compatibility import check_decoder

ITEMS = "exam_items.jsonl"
CACHE_VERSION = 1  # changes when a cached result would
PROBE = "The capital of France is Paris. 北京是中国的首都。"


def take_exams(
    model: TrainableModel,
    exams: Sequence[PreparedExam],
    max_length: int | None,
    reporter: Reporter,
    label: str = "",
    recipe: Recipe | None = None,
) -> list[ExamResult]:
    """The model's results, each exam with a progress bar; what is known of this model already is not asked again.

    Args:
        label: shown before an exam's name: before, after.
        recipe: what the model was trained with: its data are searched for the questions.
    """
    cache = ExamCache(home() / "exams" / f"{model_fingerprint(model)}.jsonl") if exams else ExamCache(None)
    results = []
    for x in exams:
        title = Message("{when}: {label}", when=Message(label), label=x.exam.name) if label else Message(x.exam.name)
        results.append(take_exam(model, x, max_length, cache, reporter.track, title))
    if recipe is None or not exams:
        return results
    try:
        texts = training_texts(recipe)
    except DataError as error:
        reporter.warn(
            Message("the training data were not searched for the exams' questions: {reason}", reason=error.message)
        )
        return results
    return [with_contamination(result, contaminated_items(x.items, texts)) for x, result in zip(exams, results)]


def training_texts(recipe: Recipe) -> list[str]:
    """Every text that a recipe trains on; held-out rows and replay included."""
    sources = [*recipe.data, *([recipe.replay.source] if recipe.replay is not None else [])]
    return [x.example.full_text for x in read_sources(sources, recipe.objective, 1.0).examples]


def model_fingerprint(model: TrainableModel) -> str:
    """A hash of the weights, and of what they make of a text, where a method shows that is switched off."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {model.device.type} {model.base_identity.exact}".encode())
    known = bool(model.base_identity.exact)
    tensors = {**model.trainable(), **model.buffers()} if known else dict(model.model.state_dict())
    ids = model.processor.text(PROBE)
    with evaluating(model), torch.no_grad():
        tensors["probe"] = model.hidden(pack([Row(input_ids=ids, labels=[IGNORE] * len(ids))]).to(model.device))
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def record_exams(
    when: Literal["before", "after"],
    model: TrainableModel,
    exams: Sequence[PreparedExam],
    max_length: int | None,
    run: Run,
    recipe: Recipe,
    reporter: Reporter,
) -> None:
    """Take the exams of a Run, unless it has their scores already: scores.json, exam_items.jsonl."""
    scores = run.scores
    measured = scores.setdefault(when, {})
    missing = [x for x in exams if f"exam.{x.exam.name}" not in measured]
    if not missing:
        return
    for result in take_exams(model, missing, max_length, reporter, when, recipe):
        measured[result.score.name] = result.score.as_json()
        earlier = [x for x in run.read(ITEMS) if (x.get("when"), x.get("exam")) != (when, result.name)]
        run.write(ITEMS, [*earlier, *({"when": when, **x} for x in result.as_lines())])
        run.write("scores.json", scores)


def evaluate_exams(
    model: str | Model, names: Sequence[str], reporter: Reporter, items: str | Path | None = None
) -> dict[str, Score]:
    """The scores of a run, or of any model, in exams.

    Args:
        items: a file for each item's result, as JSON lines.

    Raises:
        RecipeError: there is no such exam, it is not valid, or the model is no decoder.
        DataError: an exam's data cannot be used.
    """
    exams = open_exams(names)
    model = open_model(model) if isinstance(model, str) else model
    check_decoder(model.assets.architecture)
    results = take_exams(model.model, exams, model.assets.max_length, reporter, recipe=model.recipe)
    if items is not None:
        lines = (line for x in results for line in x.as_lines())
        write_text(Path(items), "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    return {x.score.name: x.score for x in results}
