"""The usual step: add up the gradients of all micro-batches, divided by what was counted beforehand.

    counts = sum over the window and over all machines          (no forward pass)
    for each micro-batch:  backward( sum over tasks of total / count )

Dividing before adding makes one batch of 8, two of 4 and eight of 1 the same gradient, whatever the rows' lengths.
"""

from weitiao.core.batch import Batch
from weitiao.core.objective import Objective
from weitiao.core.trainable_model import TunableModel
from weitiao.train.distributed import Machines
from weitiao.train.step import Taken, back, count, finish


def take(model: TunableModel, objective: Objective, window: list[Batch], machines: Machines, scale: float = 1.0) -> Taken:
    """Leave the gradient of the window's mean loss, times `scale`, in every trainable parameter.

    Returns:
        The window's loss and what was counted, over all machines.
    """
    counts = machines.add(count(objective, window))
    return finish(model, window, machines, counts, back(model, objective, window, counts, scale), scale)
