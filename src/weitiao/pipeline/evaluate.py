"""Measure a run or a model on held-out rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weitiao.core.errors import DataError, RunError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import SourcedExample
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.core.scores import Scores
from weitiao.data.later import with_settings_of
from weitiao.data.prepare import Encoder, held_out_sources, read_corpus, read_held_out
from weitiao.data.read import Reading
from weitiao.evaluate.annotate import unused_note
from weitiao.evaluate.measure import Measured, measure, requested_metrics
from weitiao.evaluate.room import answer_room, reference_lengths
from weitiao.pipeline.exams import evaluate_exams
from weitiao.pipeline.forgetting import evaluate_forgetting
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.prompting import with_system_message
from weitiao.pipeline.retrieval_baselines import baseline_scores, baselines_of_run
from weitiao.plan.compatibility import check_metrics
from weitiao.plan.resolve import resolve_rows


def evaluate(
    target: str | Model,
    reporter: Reporter,
    data: Source | str | None = None,
    metrics: Sequence[str] = (),
    limit: int | None = None,
    task: str = "",
    max_bad_fraction: float | None = None,
    exams: Sequence[str] = (),
    items: str | Path | None = None,
    forgetting: bool = False,
) -> Scores:
    """Measure a run (or any model) on its held-out rows or on another source, by exams, and by what it forgot.

    Args:
        data: a file; its columns, encoding and format are those of the run, unless it has its own.
        metrics: names; (): those of the recipe, or what fits the objective.
        limit: at most this many rows for metrics that generate; None: as the recipe says.
        task: of a multi-task run, the task that a file belongs to.
        max_bad_fraction: more unusable rows of the source than this are an error; None: as the recipe says.
        exams: names or files; without `data` and `metrics`, only they are taken.
        items: a file for each exam item's result.
        forgetting: what a run has lost; without `data` and `metrics`, only that is measured.

    Raises:
        RunError: there are no held-out rows, and no data.
        DataError: too many rows of the source cannot be used.
    """
    model = open_model(target) if isinstance(target, str) else target
    scores = evaluate_exams(model, exams, reporter, items) if exams else {}
    lost = evaluate_forgetting(model, reporter).as_json() if forgetting else None
    if (exams or forgetting) and data is None and not metrics:
        return Scores(scores, {}, lost)
    name = target if isinstance(target, str) else str(model.assets.folder)
    rows = read_rows(model, name, reporter, data, task)
    result = measure_rows(model, rows, reporter, tuple(metrics), limit, max_bad_fraction)
    baselines = baselines_of_run(model, result.eval_set)
    others = baseline_scores(baselines, result.metrics, result.eval_set)
    return Scores(result.measured.scores | scores, result.measured.classes, lost, others)


@dataclass(frozen=True)
class EvaluationRows:
    """The rows that a model is to be measured on, before they are encoded."""

    recipe: Recipe
    """Whose settings hold."""
    reading: Reading
    source: Source | None = None
    """The file that was named; None: the held-out rows."""
    system: str = ""
    """For rows that have no system message."""


def read_rows(
    model: Model, name: str, reporter: Reporter, data: Source | str | None = None, task: str = ""
) -> EvaluationRows:
    """The held-out rows of a model's run, or those of a file.

    Raises:
        RunError: there are no held-out rows, and no file.
    """
    recipe, source = model.recipe, Source(path=data, task=task) if isinstance(data, str) else data
    if recipe is None and source is None:
        raise RunError("a model without a run has no held-out rows: name a file with --data FILE.")
    if recipe is None:
        recipe = Recipe(base=name, data=(source,), objective=model.objective, overlong="truncate", out="")  # pyright: ignore[reportArgumentType]
    reading = _read(recipe, source, model.training_columns, reporter)
    if not reading.examples and source is None:
        raise RunError("{target} has no held-out rows (validation: 0): name a file with --data FILE.", target=name)
    return EvaluationRows(recipe, reading, source, model.assets.system)


@dataclass(frozen=True)
class EvaluatedRows:
    """What was measured, and on which of the rows."""

    measured: Measured
    metrics: tuple[str, ...]
    rows: dict[str, list[SourcedExample]]
    """Of each task, as they were read; "" where there are no tasks."""
    eval_set: EvalSet


def measure_rows(
    model: Model,
    rows: EvaluationRows,
    reporter: Reporter,
    metrics: tuple[str, ...] = (),
    limit: int | None = None,
    max_bad_fraction: float | None = None,
) -> EvaluatedRows:
    """Measure a model on rows: scores, and the row results that they were computed from.

    Raises:
        DataError: no row can be used, or fewer than allowed.
    """
    assets, objective, recipe, settings = model.assets, model.objective, rows.recipe, rows.recipe.evaluate
    limits = resolve_rows(recipe, objective, assets.max_length)
    encoder = Encoder(objective, assets.processor, assets.identity, limits.max_length, limits.overlong, reporter)
    examples = _with_system(rows, reporter)
    eval_set = encoder.hold_out(list(examples), bad=rows.reading.bad, corpus=read_corpus(recipe))
    if eval_set is None:
        raise DataError("there is no row to measure")
    if rows.source is not None:
        _check_unused(eval_set, recipe.max_bad_fraction if max_bad_fraction is None else max_bad_fraction)
    names = metrics or requested_metrics(settings, objective, eval_set)
    check_metrics(objective, names)
    limit = limit or settings.limit
    room = answer_room(settings, reference_lengths([eval_set], assets.processor, limit)).value
    result = measure(model.model, objective, eval_set, names, limit, room, progress=reporter.track)
    as_read = {(x.task, x.source, x.where): y.without_task for x, y in zip(examples, rows.reading.examples)}
    parts = eval_set.tasks or {"": eval_set}
    by_task = {task: [as_read[task, source, where] for source, where in y.locations] for task, y in parts.items()}
    return EvaluatedRows(result, tuple(names), by_task, eval_set)


def _with_system(rows: EvaluationRows, reporter: Reporter) -> Sequence[SourcedExample]:
    """The rows, with a system message where they have none."""
    if not rows.system:
        return rows.reading.examples
    examples, changed = with_system_message(rows.reading.examples, rows.system)
    if changed:
        reporter.say(
            Message(
                "{n:,} of {total:,} rows have no system message; that of the training rows is used: {message!r}",
                n=changed,
                total=len(examples),
                message=rows.system[:200],
            )
        )
    return examples


def _read(recipe: Recipe, source: Source | None, earlier: Sequence[str], reporter: Reporter) -> Reading:
    """The rows to measure; of a file, its columns are reported.

    Args:
        earlier: descriptions of the columns that the run was trained with.
    """
    if source is None:
        return read_held_out(recipe, held_out_sources(recipe), earlier)
    reading = read_held_out(recipe, (with_settings_of(source, recipe.data, strict=True),), earlier)
    for file, columns in reading.mappings.items():
        facts = {"file": file, "columns": columns}
        if earlier and columns not in earlier:
            template = Message("{file}: columns {columns} (in training: {earlier})", earlier=", ".join(earlier), **facts)
            reporter.warn(template)
        else:
            reporter.say(Message("{file}: columns {columns}", **facts))
    return reading


def _check_unused(eval_set: EvalSet, max_bad_fraction: float) -> None:
    """Refuse a value over the survivors.

    Raises:
        DataError: more rows than allowed cannot be measured.
    """
    unused = sum(eval_set.unused.values())
    total = unused + len(eval_set.examples)
    if unused > max_bad_fraction * total:
        raise DataError(
            "data: {fraction:.1%} of the rows cannot be measured, and max_bad_fraction is {allowed:g}: {reasons}. To "
            "measure the others, allow it: --max-bad-fraction {needed:.2f}",
            fraction=unused / total,
            allowed=max_bad_fraction,
            reasons=unused_note(eval_set),
            needed=min(1.0, unused / total + 0.01),
        )
