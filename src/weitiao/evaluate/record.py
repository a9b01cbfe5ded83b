"""The same measurements before step 1 and at the end, recorded in the Run.

scores.json         the scores, each with n and interval
classes.json        by task, what is behind scores of classes: each class, confusion matrix, mistakes, calibration
row_results.json    row by row what they were computed from, with a fingerprint of each row
samples.jsonl       a few prompts, with the answers before and after
"""

from collections.abc import Sequence
from typing import Literal

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Example
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Evaluate
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.measure import Measured, generate_answers, measure, predict, requested_metrics

PROMPT_CHARACTERS = 1000  # of a sample
LABELS = {"before": Message("before"), "after": Message("after")}


def measure_and_record(
    when: Literal["before", "after"],
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet | None,
    settings: Evaluate,
    run: Run,
    reporter: Reporter,
) -> None:
    """Measure, unless a resumed run has its scores before training already.

    Args:
        eval_set: None: no row is held out, and nothing is measured.
    """
    scores = run.scores
    if eval_set is None or (when == "before" and when in scores):
        return
    metrics = requested_metrics(settings, objective, eval_set)
    measured = measure(
        model,
        objective,
        eval_set,
        metrics,
        settings.limit,
        int(settings.max_new_tokens),
        lambda items, label: reporter.track(items, Message("{when}: {label}", when=LABELS[when], label=label)),
    )
    samples: list[tuple[Example, str | None]] = []
    for task, rows in (eval_set.tasks or {"": eval_set}).items():
        task_results = measured.tasks.get(task, measured)
        samples += _samples(model.for_task(task), objective.part(task), rows, task_results, settings)
    _write_samples(run, when, samples)
    rows = {when: measured.row_results, "rows": eval_set.fingerprints}
    run.write("row_results.json", {**run.read("row_results.json", {}), **rows})
    if measured.classes:
        run.write("classes.json", {**run.read("classes.json", {}), when: measured.classes})
    scores[when] = {name: score.as_json() for name, score in measured.scores.items()}
    run.write("scores.json", scores)


def _samples(
    model: TrainableModel, objective: Objective, eval_set: EvalSet, measured: Measured, settings: Evaluate
) -> list[tuple[Example, str | None]]:
    """The first examples, with the model's answers; those that were measured anyway are not computed again."""
    examples = eval_set.examples[: settings.samples]
    if objective.traits.generative and not objective.traits.has_predict:
        return list(zip(examples, measured.generated or generate_answers(model, examples, int(settings.max_new_tokens))))
    predictions = measured.predictions
    if len(predictions) < len(examples):
        predictions = predict(model, objective, eval_set, limit=settings.samples)
    return [(example, objective.answer(prediction)) for prediction, example in predictions[: len(examples)]]


def _write_samples(run: Run, when: str, samples: Sequence[tuple[Example, str | None]]) -> None:
    """Add the answers to the lines of the same prompts."""
    earlier = run.read("samples.jsonl")
    lines = []
    for i, (example, answer) in enumerate(samples):
        line = {"prompt": example.input_text[:PROMPT_CHARACTERS], "reference": example.answer}
        lines.append({**(earlier[i] if i < len(earlier) else line), when: answer})
    run.write("samples.jsonl", lines)
