"""`weitiao compare`: several models on the same rows, each against the first.

A model is a Run, a folder, a hub id, or what an earlier comparison recorded of one (results/NAME.json). Of a Run whose rows
were recorded when it was trained nothing is computed again; others are opened one after the other.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weitiao.core.errors import DataError, RunError
from weitiao.core.eval_set import row_fingerprint
from weitiao.core.example import SourcedExample
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.data.prepare import held_out_sources, read_held_out
from weitiao.evaluate.comparison.comparison import Comparison, answer_of, compare_results
from weitiao.evaluate.comparison.gates import check_gates, read_gates
from weitiao.evaluate.comparison.results import ComparedRow, Results
from weitiao.evaluate.examination.result import ItemResult
from weitiao.evaluate.examination.run import PreparedExam
from weitiao.evaluate.report.comparison_report import write_comparison_report
from weitiao.evaluate.review.judge_model import JudgeResults, judge_results, read_verdicts
from weitiao.evaluate.review.review_set import ReviewItem, ReviewSet
from weitiao.pipeline.evaluate import EvaluationRows, measure_rows, read_rows
from weitiao.pipeline.exams import ITEMS, open_exams, take_exams
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.judging import judge_review
from weitiao.pipeline.model_identity import hashed, model_identity, name_targets
from weitiao.pipeline.trained import TrainedRun, read_trained

FOLDER, REPORT = "comparisons", "report.html"
JUDGED_ROWS = 100  # of each task


@dataclass(frozen=True)
class CompareOptions:
    """What is to be compared, and how."""

    targets: Sequence[str]
    """The reference first; NAME=TARGET gives one a name."""
    data: Source | None = None
    """Rows of a file; None: the held-out rows of the first model that has any."""
    metrics: tuple[str, ...] = ()
    exams: tuple[str, ...] = ()
    """Names or files; (): those of the runs' recipes."""
    limit: int | None = None
    """At most this many rows for metrics that generate."""
    require: Sequence[str] = ()
    no_worse: Sequence[str] = ()
    by_interval: bool = False
    out: str = ""
    """The record folder; "": comparisons/A-B."""
    judge: str = ""
    """A model or an address that judges the answers, too; "": none."""
    judge_model: str = ""
    """Of a server: the name of the model."""
    html: str = ""
    """Where the report is written; "": report.html of the record."""
    in_memory: bool = False
    """The rows of `data` are in no file that stays, so that no command compares again."""

    def as_arguments(self) -> list[str]:
        """What stands after `weitiao compare` to do it again."""
        arguments = [*self.targets]
        lists = {"metric": self.metrics, "exam": self.exams, "require": self.require, "no-worse": self.no_worse}
        arguments += [x for name, values in lists.items() for value in values for x in (f"--{name}", value)]
        source = self.data
        arguments += [
            x for key, name in ((source and source.columns) or {}).items() for x in ("--columns", f"{key}={name}")
        ]
        single = {
            "data": source and source.path, "task": source and source.task, "limit": self.limit, "out": self.out,
            "judge": self.judge, "judge-model": self.judge_model,
        }  # fmt: skip
        arguments += [x for name, value in single.items() if value for x in (f"--{name}", str(value))]
        return [*arguments, *(["--by-interval"] if self.by_interval else [])]


@dataclass
class _Subject:
    name: str
    target: str
    recorded: Results | None = None
    trained: TrainedRun | None = None
    _model: Model | None = None

    def model(self, reporter: Reporter) -> Model:
        """Opened when it is first needed."""
        if self._model is None:
            with reporter.spin(Message("loading the model")):
                self._model = open_model(self.target)
        return self._model

    def release(self) -> None:
        """One model at a time is in memory."""
        self._model = None


def compare(options: CompareOptions, reporter: Reporter) -> Comparison:
    """Measure what is not yet measured, compare, check the gates, and write the record.

    Raises:
        DataError, RunError, ModelError, RecipeError: the models have no rows in common, one cannot be opened, or a gate is
            about nothing that was measured.
    """
    gates = read_gates(options.require, options.no_worse)
    subjects = [_subject(name, target) for name, target in name_targets(options.targets)]
    folder = Path(options.out or f"{FOLDER}/{'-'.join(x.name for x in subjects)[:100]}")
    results: list[Results] = []
    lender, exams = _Lender(options), open_exams(options.exams or _exams_of(subjects))
    for x in subjects:
        reporter.say(Message("{name}: {target}", name=x.name, target=x.target), "dim")
        results.append(_results(x, options, lender, folder, reporter))
        _add_exams(results[-1], x, exams, reporter)
        x.release()
    comparison = compare_results(results, options.metrics)
    if options.judge:
        comparison.judges = _judged(comparison, options, folder, reporter)
    comparison.gates = check_gates(gates, comparison.differences, options.by_interval)
    comparison.write(folder)
    arguments = [] if options.in_memory else options.as_arguments()
    comparison.report = write_comparison_report(comparison, arguments, Path(options.html or folder / REPORT))
    return comparison


def _judged(comparison: Comparison, options: CompareOptions, folder: Path, reporter: Reporter) -> list[JudgeResults]:
    """What a judge model says of the answers to the first rows."""
    items = []
    for task, rows in comparison.reference.rows.items():
        for i, row in enumerate(rows[:JUDGED_ROWS]):
            answers = {x.name: answer_of(x, task, i) for x in comparison.results}
            if all(answers.values()):
                items.append(ReviewItem(({"role": "user", "content": row.input},), answers))
    review = ReviewSet({x.name: x.target for x in comparison.results}, tuple(items), "")
    if not review.pairs:
        raise DataError("there is nothing to judge: no two answers differ in the first {n:,} rows", n=JUDGED_ROWS)
    judge_review(review, folder, options.judge, options.judge_model, reporter)
    return judge_results(review, read_verdicts(folder))


def _subject(name: str, target: str) -> _Subject:
    path = Path(target).expanduser()
    if path.suffix == ".json" and path.is_file():
        return _Subject(name, target, recorded=replace(Results.read(path), name=name))
    return _Subject(name, target, trained=read_trained(target))


class _Lender:
    """Lends the rows of the first model that has some to those that have none of their own."""

    def __init__(self, options: CompareOptions) -> None:
        self.options, self.rows = options, None
        for _, target in name_targets(options.targets):
            if self.rows is None and (Path(target).expanduser() / "recipe.yaml").is_file():
                self.rows = self._of_run(target)

    def _of_run(self, target: str) -> EvaluationRows | None:
        run = Run.open(Path(target).expanduser())
        reading = read_held_out(run.recipe, held_out_sources(run.recipe))
        if not reading.examples:
            return None
        return EvaluationRows(run.recipe, reading, None, str(run.read("resolved.json", {}).get("system") or ""))

    def rows_for(self, model: Model, subject: _Subject, reporter: Reporter) -> EvaluationRows | None:
        """Its own, as it reads them, or those of the lender; None: there are none, and only exams are compared."""
        if self.options.data is not None:
            if model.recipe is None and self.rows is not None:
                model = replace(model, recipe=self.rows.recipe)  # the file is read as the run reads it
            rows = read_rows(model, subject.target, reporter, self.options.data, self.options.data.task)
            return replace(rows, system=rows.system or (self.rows.system if self.rows else ""))
        if self.rows is None and self.options.exams:
            return None
        if model.recipe is not None:
            return read_rows(model, subject.target, reporter)
        if self.rows is None:
            raise RunError("none of the models is a run with held-out rows: name a file with --data FILE.")
        return self.rows


def _results(subject: _Subject, options: CompareOptions, lender: _Lender, folder: Path, reporter: Reporter) -> Results:
    if subject.recorded is not None:
        return subject.recorded
    if options.data is None and (kept := _recorded_in_run(subject, options)) is not None:
        reporter.say(Message("  as it was recorded when it was trained"), "dim")
        return kept
    model = subject.model(reporter)
    rows = lender.rows_for(model, subject, reporter)
    if model.recipe is None and lender.rows is not None:
        model = _with_objective_of(lender.rows, model)
    if rows is None:
        return Results(subject.name, subject.target, {"": []}, {}, (), model.assets.identity, model_identity(model))
    identity = _identity(model, subject, rows, options)
    file = folder / "results" / f"{subject.name}.json"
    if file.is_file() and (earlier := Results.read(file)).identity == identity:
        reporter.say(Message("  as it was measured before: {file}", file=file), "dim")
        return earlier
    evaluated = measure_rows(model, rows, reporter, options.metrics, options.limit)
    compared = {task: [_compared(x) for x in listed] for task, listed in evaluated.rows.items()}
    tokenizer = model.assets.identity
    results = Results(subject.name, subject.target, compared, evaluated.measured.row_results, evaluated.metrics, tokenizer)
    results.identity = identity
    (folder / "results").mkdir(parents=True, exist_ok=True)
    results.write(file)  # at once: a later model may fail
    return results


def _exams_of(subjects: Sequence[_Subject]) -> list[str]:
    """What the runs' recipes name."""
    recipes = [x.trained.recipe for x in subjects if x.trained is not None and x.trained.recipe is not None]
    return list(dict.fromkeys(name for recipe in recipes for name in recipe.evaluate.exams))


def _add_exams(results: Results, subject: _Subject, exams: Sequence[PreparedExam], reporter: Reporter) -> None:
    """Each exam's items: as a run recorded them, where they are the same ones, or taken now."""
    if subject.recorded is not None:
        return
    records = Run(subject.trained.folder).read(ITEMS) if subject.trained is not None and subject.trained.recipe else []
    missing = []
    for exam in exams:
        own = [ItemResult.from_json(x) for x in records if (x.get("when"), x.get("exam")) == ("after", exam.exam.name)]
        if own and {x.id for x in own} <= {x.id for x in exam.items}:  # without those that are too long for it
            results.exams[exam.exam.name] = {x.id: x.correct for x in own}
        else:
            missing.append(exam)
    if missing:
        model = subject.model(reporter)
        for taken in take_exams(model.model, missing, model.assets.max_length, reporter, subject.name):
            results.exams[taken.name] = {x.id: x.correct for x in taken.items}


def _with_objective_of(rows: EvaluationRows, model: Model) -> Model:
    """A base model is measured by the objective of the run that lends the rows, where that needs nothing trained."""
    objective = rows.recipe.objective
    if objective.traits.example_type is not model.objective.traits.example_type and objective.traits.generative:
        return replace(model, objective=objective)
    return model


def _recorded_in_run(subject: _Subject, options: CompareOptions) -> Results | None:
    """What a Run recorded at its end, where its rows are still those of its files."""
    trained = subject.trained
    if trained is None or trained.recipe is None or options.limit is not None:
        return None
    run = Run(trained.folder)
    record = run.read("row_results.json", {})
    if "rows" not in record or "after" not in record or not run.is_finished:
        return None
    rows = _rows_by_fingerprint(trained, record["rows"])
    if rows is None:
        return None
    metrics = tuple(run.scores.get("after", {}))
    results = Results(subject.name, subject.target, rows, record["after"], metrics, _tokenizer_of(run))
    results.identity = hashed(trained.identity)
    lacking = [x for x in options.metrics if results.pairs(x, find(Metric, x.rpartition(".")[2]).reads) is None]
    return None if lacking else results


def _tokenizer_of(run: Run) -> str:
    return str(run.read("resolved.json", {}).get("template", {}).get("identity", ""))


def _rows_by_fingerprint(trained: TrainedRun, wanted: dict[str, list[str]]) -> dict[str, list[ComparedRow]] | None:
    """The rows as the recipe's files have them now; None: they have changed."""
    recipe = trained.recipe
    assert recipe is not None
    try:
        examples = read_held_out(recipe, held_out_sources(recipe), trained.columns).examples
    except DataError:  # a file is gone: what is measured anew will say so
        return None
    found: dict[str, dict[str, ComparedRow]] = {}
    for x in examples:
        plain = x.without_task
        found.setdefault(x.task, {})[row_fingerprint(plain.example)] = _compared(plain)
    rows = {task: [found.get(task, {}).get(x) for x in prints] for task, prints in wanted.items()}
    if any(x is None for listed in rows.values() for x in listed):
        return None
    return {task: [x for x in listed if x is not None] for task, listed in rows.items()}


def _compared(x: SourcedExample) -> ComparedRow:
    return ComparedRow.of(x.example, x.where.file, x.for_evaluation.get("group", ""))


def _identity(model: Model, subject: _Subject, rows: EvaluationRows, options: CompareOptions) -> str:
    """Changes when the model, the rows or the settings do."""
    prints = [row_fingerprint(x.without_task.example) for x in rows.reading.examples]
    settings = rows.recipe.evaluate.model_dump(mode="json"), options.metrics, options.limit, rows.system
    return hashed(json.dumps([model_identity(model), prints, settings]))
