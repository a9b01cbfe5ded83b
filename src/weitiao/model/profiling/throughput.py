"""How fast a run learnt, beside what the machine's matrix products reach: the journal's line "speed".

needed GFLOP a token   by the model's shapes (flops.py), over the run's own batches
tokens a second        the median over this process's steps, the first left out
the limit              torch.mm at the shapes of the model's own layers, on as many rows as a batch has, in the run's
                       precision: the median of each shape, right after the last step
"""

import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from weitiao.core import events, hardware
from weitiao.core.batch import Batch
from weitiao.core.events import Event
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.run import Run
from weitiao.core.shared_prefix import no_prefix_sharing
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.backbone.decoder import BlockBackbone
from weitiao.model.profiling import timing
from weitiao.model.profiling.flops import FlopProfile, profile_flops, step_flops, unsupported_reason

SAMPLE = 16  # steps whose batches are looked at
SECONDS = 0.5  # for the limit, at most
SHARE = 0.25  # of the time that was trained, at most
MOST = 1.2  # of the limit: beyond it, other work has spoilt the measuring of so short a run, and no limit is given


@dataclass
class Speed:
    """Listens to the journal while a run trains, then writes one line."""

    model: TrainableModel
    objective: Objective
    fetch: Callable[[int], list[Batch]]
    """i -> the micro-batches of step i on this machine."""
    world: int = 1
    """How many machines there are."""
    steps: list[tuple[int, float, float]] = field(default_factory=list)
    """(position in the data, tokens, seconds) of each step heard."""

    def on_event(self, run: Run, event: Event) -> None:
        if isinstance(event, events.Step):
            self.steps.append((event.data_step - 1, event.tokens, event.seconds))

    def report(self, run: Run) -> None:
        """Write the line "speed". Nothing is written of a single step, which mostly warms up."""
        steady = [(at, tokens / seconds, seconds) for at, tokens, seconds in self.steps[1:] if seconds > 0]
        if not steady:
            return
        tokens_per_second = statistics.median(x for _, x, _ in steady)
        facts: dict[str, Any] = {"tokens_per_second": round(tokens_per_second, 1), "steps": len(steady)}
        seen = None if (why := unsupported_reason(self.model, self.objective)) else profile_flops(self.model)
        if seen is not None and (seen.passed_by or not seen.products):
            seen, why = None, "a method that goes its own way past layers"
        if seen is None:
            run.log(events.Throughput(**facts, unsupported_reason=Message(why)))
            return
        dtype, _ = hardware.precision(run.recipe.train.precision)
        seconds = min(SECONDS, SHARE * sum(x for _, _, x in steady))
        places = [at for at, _, _ in steady]
        run.log(events.Throughput(**facts, **self.beside_the_limit(seen, tokens_per_second, places, dtype, seconds)))

    def beside_the_limit(
        self, seen: FlopProfile, tokens_per_second: float, places: Sequence[int], dtype: torch.dtype, seconds: float
    ) -> dict[str, Any]:
        """What was needed, what was reached, what can be reached.

        Args:
            places: the steps' positions in the data.
            seconds: for measuring the limit.
        """
        apart = max(1, len(places) // SAMPLE)
        batches = [batch for at in places[::apart] for batch in self.fetch(at)]
        tokens = sum(batch.tokens for batch in batches)
        body = self.model.backbone if isinstance(self.model.backbone, BlockBackbone) else None
        below = body.below if body is not None else 0  # layers that ran once, before
        spared = body.spared / body.laid if body is not None and body.laid else 0.0
        with nullcontext() if spared else no_prefix_sharing():
            each = sum(step_flops(seen, self.model, self.objective, x, below) for x in batches) / tokens / 1e9
        virtual_tokens = len(self.model.attachment.virtual_tokens())
        rows = int(
            statistics.median(batch.tokens + virtual_tokens * len(batch.lengths) for batch in batches) * (1 - spared)
        )
        reached = each * tokens_per_second
        counted = {"needed_gflop_per_token": _short(each), "gflop_per_second": _short(reached)}
        if spared:
            counted["shared_prefix_fraction"] = round(spared, 4)
        most = limit(seen, rows, dtype, self.model.device, seconds).median * self.world
        if reached > MOST * most:
            return counted
        return {
            **counted,
            "limit_gflop_per_second": _short(most),
            "share_of_limit": round(reached / most, 4),
        }


def limit(seen: FlopProfile, rows: int, dtype: torch.dtype, device: torch.device, seconds: float) -> timing.Rate:
    """What torch.mm reaches at the shapes of the body's own layers, each as often as the body needs it."""
    often: dict[tuple[tuple[int, int], tuple[str, ...]], int] = {}
    for x in seen.products:
        if x.own and x.rows is None:
            kinds = tuple(kind for kind, there in zip(timing.KINDS, (True, x.to_input, x.to_weight)) if there)
            often[x.shape, kinds] = often.get((x.shape, kinds), 0) + 1
    works = [timing.product(shape, rows, dtype, device, kinds, many) for (shape, kinds), many in often.items()]
    return timing.together(works, timing.measure(works, device, seconds))


def _short(value: float) -> float:
    return float(f"{value:.4g}")
