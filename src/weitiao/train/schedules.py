"""The learning rate as a pure function of the step: there is no state to save or restore."""

import math

FINAL_RATIO = 0.1  # the cosine ends at 10 % of the peak (Hoffmann et al. 2022, arXiv 2203.15556, sec. 3.1)


def rate_at(step: int, steps: int, peak: float, warmup_ratio: float, schedule: str) -> float:
    """The learning rate of optimizer step `step` (from 0) of `steps`.

    Args:
        peak: the highest learning rate.
        warmup_ratio: fraction of the steps in which it rises linearly.
        schedule: cosine (to 10 % of the peak), linear (to 0) or constant.

    >>> [round(rate_at(s, 4, 1.0, 0.0, "linear"), 2) for s in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    warmup_steps = round(warmup_ratio * steps)
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - progress)
    return peak * (FINAL_RATIO + (1 - FINAL_RATIO) * 0.5 * (1 + math.cos(math.pi * progress)))
