"""The usual step: add up the gradients of all micro-batches, each divided by the counts of the whole window.

    counts = sum over the window and over all processes         (no forward pass)
    for each micro-batch:  backward( sum over tasks of total / count )

Dividing before adding makes one batch of 8, two of 4 and eight of 1 the same gradient, whatever the rows' lengths.
"""

from weitiao.core.batch import Batch
from weitiao.core.objective import LossFunction
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.distributed import Distributed
from weitiao.train.step import StepResult, backward, count_targets, reduce


def compute_gradients(
    model: TrainableModel, objective: LossFunction, window: list[Batch], distributed: Distributed, scale: float = 1.0
) -> StepResult:
    """Leave the gradient of the window's mean loss, times `scale`, in every trainable parameter.

    Returns:
        The window's loss and counts, over all processes.
    """
    counts = distributed.all_reduce(count_targets(objective, window))
    return reduce(model, window, distributed, counts, backward(model, objective, window, counts, scale), scale)
