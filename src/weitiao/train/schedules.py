"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

FLOOR = 0.1  # the cosine ends at a tenth of the peak (Hoffmann et al. 2022, arXiv 2203.15556, sec. 3.1)


def rate_at(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The rate for optimizer step `step` (from 0) of `steps`.

    Args:
        peak: the highest rate.
        warmup: share of the steps in which it rises in a straight line.
        schedule: cosine (to a tenth of the peak), linear (to nought) or constant.

    >>> [round(rate_at(s, 4, 1.0, 0.0, "linear"), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    done = (step - rising) / max(steps - rising, 1)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - done)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
