"""How fast a run trained, next to what the machine's matrix products reach: the event Throughput.

needed GFLOP per token   by the model's shapes (flops.py), over the run's own batches
tokens per second        the median over this process's steps, without the first
the limit                torch.mm at the shapes of the model's own layers, with as many rows as a batch has, in the run's
                         precision: the median of each shape, measured right after the last step
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
from weitiao.model.backbone.block_backbone import BlockBackbone
from weitiao.model.profiling import timing
from weitiao.model.profiling.flops import FlopProfile, profile_flops, step_flops, unsupported_reason

MAX_BATCHES = 16  # steps whose batches are counted
MAX_SECONDS = 0.5  # for measuring the limit
MAX_FRACTION = 0.25  # of the training time, for measuring the limit
MAX_SHARE = 1.2  # of the limit; more means that other programs disturbed the measurement, and no limit is reported


@dataclass
class ThroughputMeter:
    """A callback that collects a run's steps, and logs their throughput after the last one."""

    model: TrainableModel
    objective: Objective
    fetch: Callable[[int], list[Batch]]
    """i -> the micro-batches of step i in this process."""
    world_size: int = 1
    """Number of processes."""
    steps: list[tuple[int, float, float]] = field(default_factory=list)
    """(index of the window in the data, tokens, seconds) of each step."""

    def on_event(self, run: Run, event: Event) -> None:
        if isinstance(event, events.Step):
            self.steps.append((event.data_step - 1, event.tokens, event.seconds))

    def report(self, run: Run) -> None:
        """Log the event Throughput; nothing after a single step, which is mostly warm-up."""
        steady = [(index, tokens / seconds, seconds) for index, tokens, seconds in self.steps[1:] if seconds > 0]
        if not steady:
            return
        rate = statistics.median(x for _, x, _ in steady)
        measured: dict[str, Any] = {"tokens_per_second": round(rate, 1), "steps": len(steady)}
        reason = unsupported_reason(self.model, self.objective)
        profile = None if reason else profile_flops(self.model)
        if profile is not None and (profile.bypasses_layers or not profile.products):
            reason = Message("FLOPs are not counted for methods that bypass layers")
        if profile is None or reason:
            run.log(events.Throughput(**measured, unsupported_reason=reason))
            return
        dtype, _ = hardware.precision(run.recipe.train.precision)
        seconds = min(MAX_SECONDS, MAX_FRACTION * sum(x for _, _, x in steady))
        indices = [index for index, _, _ in steady]
        run.log(events.Throughput(**measured, **self.flops_and_limit(profile, rate, indices, dtype, seconds)))

    def flops_and_limit(
        self,
        profile: FlopProfile,
        tokens_per_second: float,
        indices: Sequence[int],
        dtype: torch.dtype,
        seconds: float,
    ) -> dict[str, Any]:
        """The FLOPs needed, those reached per second, and the limit: fields of the event Throughput.

        Args:
            indices: of the steps' windows in the data.
            seconds: for measuring the limit.
        """
        stride = max(1, len(indices) // MAX_BATCHES)
        batches = [batch for index in indices[::stride] for batch in self.fetch(index)]
        num_tokens = sum(batch.tokens for batch in batches)
        backbone = self.model.backbone if isinstance(self.model.backbone, BlockBackbone) else None
        from_layer = (
            backbone.num_cached_layers if backbone is not None else 0
        )  # lower layers ran once, for the activation cache
        shared_fraction = (
            backbone.num_shared_tokens / backbone.num_tokens if backbone is not None and backbone.num_tokens else 0.0
        )
        with nullcontext() if shared_fraction else no_prefix_sharing():
            flops = sum(step_flops(profile, self.model, self.objective, x, from_layer) for x in batches)
        gflop_per_token = flops / num_tokens / 1e9
        num_virtual = len(self.model.attachment.virtual_tokens())
        median_rows = statistics.median(batch.tokens + num_virtual * len(batch.lengths) for batch in batches)
        reached = gflop_per_token * tokens_per_second
        fields = {"needed_gflop_per_token": _rounded(gflop_per_token), "gflop_per_second": _rounded(reached)}
        if shared_fraction:
            fields["shared_prefix_fraction"] = round(shared_fraction, 4)
        rows = int(median_rows * (1 - shared_fraction))
        limit = matmul_limit(profile, rows, dtype, self.model.device, seconds).median * self.world_size
        if reached > MAX_SHARE * limit:
            return fields
        return {**fields, "limit_gflop_per_second": _rounded(limit), "share_of_limit": round(reached / limit, 4)}


def matmul_limit(profile: FlopProfile, rows: int, dtype: torch.dtype, device: torch.device, seconds: float) -> timing.Rate:
    """What torch.mm reaches at the shapes of the backbone's own layers, each as often as the backbone needs it."""
    counts: dict[tuple[tuple[int, int], tuple[str, ...]], int] = {}
    for x in profile.products:
        if x.own and x.rows is None:
            needed = (True, x.to_input, x.to_weight)
            passes = tuple(name for name, is_needed in zip(timing.PASSES, needed) if is_needed)
            counts[x.shape, passes] = counts.get((x.shape, passes), 0) + 1
    workloads = [
        timing.matmul_workload(shape, rows, dtype, device, passes, count) for (shape, passes), count in counts.items()
    ]
    return timing.combined_rate(workloads, timing.measure(workloads, device, seconds))


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")
