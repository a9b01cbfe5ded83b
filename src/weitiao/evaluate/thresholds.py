"""Decision thresholds that an objective calibrates on the validation rows after training."""

from weitiao.core.eval_set import EvalSet
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.measure import predict


def calibrate_thresholds(
    model: TrainableModel,
    objective: Objective,
    validation: EvalSet | None,
    final: EvalSet | None,
    run: Run,
    reporter: Reporter,
) -> Objective:
    """The objective with its calibrated thresholds, which are recorded in the Run and reported.

    Args:
        validation: the rows to calibrate on; None: nothing is calibrated.
        final: the rows of the final evaluation.
    """
    if validation is None:
        return objective
    rows = validation

    def predictions_of(task: str) -> list:
        task_rows = rows.tasks.get(task) if task else rows
        return predict(model.for_task(task), objective.part(task), task_rows, reporter.track) if task_rows else []

    calibrated, decisions = objective.calibrate(predictions_of)
    if decisions:
        reporter.report(run, *decisions)
        run.record(objective=calibrated.as_recipe())
        if final is validation:
            reporter.warn(
                Message("The scores below use the same rows that the thresholds were chosen on; set evaluate.data")
            )
    return calibrated
