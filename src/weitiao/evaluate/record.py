"""The same measurements and the same questions, before step 1 and at the end.

scores.json has the figures, row_results.json what they were made of row by row, samples.jsonl a few answers.
"""

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Example
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Evaluate
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.measure import Measured, default_metrics, generate_answers, measure, predict


def measure_and_record(
    when: str,
    model: TrainableModel,
    objective: Objective,
    eval_set: EvalSet | None,
    wishes: Evaluate,
    run: Run,
    reporter: Reporter,
) -> None:
    """Measure as `when` ("before" or "after"), unless it is written down already (a resumed run).

    Args:
        held_out: None: nothing is held out, nothing is measured.
    """
    scores = run.read("scores.json", {})
    if eval_set is None or (when == "before" and when in scores):
        return
    wanted = default_metrics(objective, eval_set) if wishes.metrics == "auto" else wishes.metrics
    measured = measure(
        model,
        objective,
        eval_set,
        wanted,
        wishes.limit,
        wishes.max_new_tokens,
        lambda items, words: reporter.track(items, f"{when}: {words}"),
    )
    answered = []
    for task, mine in (eval_set.tasks or {"": eval_set}).items():
        seen = measured.tasks.get(task, measured)
        answered += _answered(model.for_task(task), objective.part(task), mine, seen, wishes)
    _add_samples(run, when, answered)
    run.write("row_results.json", {**run.read("row_results.json", {}), when: measured.row_results})
    scores[when] = {name: score.as_json() for name, score in measured.scores.items()}
    run.write("scores.json", scores)


def _answered(
    model: TrainableModel, objective: Objective, eval_set: EvalSet, measured: Measured, wishes: Evaluate
) -> list[tuple[Example, str | None]]:
    """A few examples, and what the model says of them."""
    chosen = eval_set.examples[: wishes.samples]
    if objective.traits.generative and not objective.traits.has_predict:
        return list(zip(chosen, measured.generated or generate_answers(model, chosen, wishes.max_new_tokens)))
    predicted = measured.predictions or predict(model, objective, eval_set, limit=wishes.samples)
    return [(x, objective.answer(said)) for said, x in predicted[: len(chosen)]]


def _add_samples(run: Run, when: str, answered: list) -> None:
    old = run.read("samples.jsonl")
    lines = []
    for i, (example, answer) in enumerate(answered):
        new = {"prompt": example.input_text[:1000], "reference": example.answer}
        lines.append({**(old[i] if i < len(old) else new), when: answer})
    run.write("samples.jsonl", lines)
