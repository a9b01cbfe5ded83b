"""Rows of a Run that compressing needs: to calibrate on, which were trained on, and to compare on, which were not."""

from collections.abc import Sequence
from itertools import groupby

import torch

from weitiao.core.batch import IGNORE, Row, pack
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import SourcedExample
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.data.later import with_settings_of
from weitiao.data.prepare import Encoder, held_out_sources, read_held_out, read_training
from weitiao.deploy.verification.fidelity import AnswerRow, LogProbs
from weitiao.pipeline.inference import Model
from weitiao.pipeline.prompting import with_system_message
from weitiao.plan.resolve import resolve_rows


def calibration_rows(model: Model, data: Source | None, n: int, reporter: Reporter) -> list[list[int]]:
    """Token ids of up to n rows that the Run was trained on, spread evenly over them; or of a file."""
    recipe = model.recipe
    if recipe is None:
        return _spread(_rows(_held_out(model, data, reporter)), n) if data is not None else []
    examples = read_training(recipe, model.training_columns)
    chosen = [examples[i * len(examples) // min(n, len(examples))] for i in range(min(n, len(examples)))]
    encoded = _encoder(model, recipe, reporter).encode(_with_system(model, chosen))
    return [[int(x) for x in row["input_ids"]] for row in encoded.rows]


def answer_rows(model: Model, data: Source | None, enough: int, reporter: Reporter) -> list[AnswerRow]:
    """The answers of held-out rows; where they have fewer tokens than `enough`, those of the validation rows too."""
    rows = answers_in(_rows(_held_out(model, data, reporter)))
    recipe = model.recipe
    if data is None and recipe is not None and recipe.evaluate.data and sum(len(x.answer_ids) for x in rows) < enough:
        without = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"data": ()})})
        if without.validation:
            rows += answers_in(_rows(_held_out(model, None, reporter, without)))
    return rows


def answers_in(rows: Sequence[Row]) -> list[AnswerRow]:
    """Each stretch of tokens that carry loss, with all that comes before it."""
    answers = []
    for row in rows:
        ids, labels = [int(x) for x in row["input_ids"]], [int(x) for x in row["labels"]]
        for carries, group in groupby(range(len(ids)), lambda t, labels=labels: labels[t] != IGNORE):
            positions = list(group)
            if carries:
                answers.append(AnswerRow(ids[: positions[0] + 1], [labels[t] for t in positions]))
    return answers


def log_probs(model: TrainableModel) -> LogProbs:
    """A model's log-probabilities of answers, by the forward pass that training uses, several rows at once."""

    @torch.no_grad()
    def score(rows: Sequence[AnswerRow]) -> list[torch.Tensor]:
        packed: list[Row] = []
        for row in rows:
            labels = [IGNORE] * (len(row.prompt_ids) - 1) + list(row.answer_ids)
            packed.append({"input_ids": row.ids[:-1], "labels": labels})
        batch = pack(packed, row_ids=range(len(rows))).to(model.device)
        with evaluating(model):
            scores = model.logits(batch, batch.supervised).log_softmax(-1).cpu()
        parts = dict(zip(batch.row_ids, scores.split([len(rows[i].answer_ids) for i in batch.row_ids])))
        return [parts[i] for i in range(len(rows))]

    return score


def _held_out(model: Model, data: Source | None, reporter: Reporter, recipe: Recipe | None = None) -> EvalSet | None:
    recipe = recipe or model.recipe
    if recipe is None and data is None:
        return None
    if recipe is None:
        base = str(model.assets.folder)
        recipe = Recipe(base=base, data=(data,), objective=model.objective, overlong="truncate", out="")  # pyright: ignore[reportArgumentType]
    sources = held_out_sources(recipe) if data is None else (with_settings_of(data, recipe.data, strict=True),)
    if sources is None and not recipe.validation:
        return None
    reading = read_held_out(recipe, sources, model.training_columns)
    return _encoder(model, recipe, reporter).hold_out(_with_system(model, reading.examples), bad=reading.bad)


def _encoder(model: Model, recipe: Recipe, reporter: Reporter) -> Encoder:
    assets = model.assets
    limits = resolve_rows(recipe, model.objective, assets.max_length)
    return Encoder(model.objective, assets.processor, assets.identity, limits.max_length, limits.overlong, reporter)


def _with_system(model: Model, examples: list[SourcedExample]) -> list[SourcedExample]:
    system = model.assets.system
    return with_system_message(examples, system)[0] if system else examples


def _rows(eval_set: EvalSet | None) -> list[Row]:
    return [row for batch in eval_set.batches() for row in batch.rows] if eval_set else []


def _spread(rows: Sequence[Row], n: int) -> list[list[int]]:
    chosen = [rows[i * len(rows) // min(n, len(rows))] for i in range(min(n, len(rows)))]
    return [[int(x) for x in row["input_ids"]] for row in chosen]
