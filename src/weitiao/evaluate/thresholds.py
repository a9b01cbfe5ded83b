"""What an objective chooses when all is learnt, on the validation rows: from which score on an answer is given."""

from weitiao.core.eval_set import EvalSet
from weitiao.core.objective import Objective
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.measure import predict


def tune(
    model: TrainableModel,
    objective: Objective,
    validation: EvalSet | None,
    final: EvalSet | None,
    run: Run,
    reporter: Reporter,
) -> Objective:
    """The objective with its thresholds, which are written into the Run and said.

    Args:
        validation: the rows that they are chosen on; None: nothing is chosen.
        final: the rows that have the last word.
    """
    if validation is None:
        return objective
    rows = validation

    def ask(task: str) -> list:
        mine = rows.tasks.get(task) if task else rows
        return predict(model.for_task(task), objective.part(task), mine, reporter.track) if mine else []

    tuned, told = objective.calibrate(ask)
    if told:
        reporter.report(run, *told)
        run.add_to_resolved(objective=tuned.as_recipe())
        if final is validation:
            reporter.warn("The figures below are measured on the rows that thresholds were chosen on: name evaluate.data.")
    return tuned
