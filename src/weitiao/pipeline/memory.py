"""How much memory training takes: the recipe's own step, run on tensors without numbers.

Model, method, objective, loss head, optimizer and gradient checkpointing are the real ones; only the numbers are missing
(model/profiling/memory_tracker.py). Nothing is fitted to measurements.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import PretrainedConfig

from weitiao.core.batch import Batch
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.objective import LossFunction, Objective
from weitiao.core.processor import Processor
from weitiao.core.recipe_sections import Train
from weitiao.core.regularizer import Regularizer, regularized
from weitiao.core.shared_prefix import no_prefix_sharing
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.module_structure import layer_stack
from weitiao.model.kernels.library import kernels_disabled, replaced_kernels
from weitiao.model.layers.gradient_checkpointing import enable_gradient_checkpointing
from weitiao.model.layers.shape_trace import KernelShapes, ShapeTrace, tracing_shapes
from weitiao.model.loading.load import base_of_shapes
from weitiao.model.profiling.memory_tracker import MemoryTracker
from weitiao.pipeline.load import attach
from weitiao.plan.memory import TracedMemory
from weitiao.train.settings import Plan, make_optimizer


@dataclass(frozen=True)
class TracedBatch(Batch):
    """A batch of tensors without numbers: it must be told what a real one finds in them."""

    num_supervised: int = 0

    @property
    def supervised(self) -> Tensor:
        """[N]"""
        return torch.empty(self.num_supervised, dtype=torch.long)

    def to(self, device: torch.device | str) -> "TracedBatch":
        return self


@dataclass(frozen=True)
class TracedSettings:
    """What a step of training is traced with."""

    config: PretrainedConfig
    method: Method
    objective: Objective
    """Fitted to the data."""
    processor: Processor
    train: Train
    dtype: torch.dtype
    """Of the activations."""
    trace: ShapeTrace
    checkpointing: bool = False
    regularizers: tuple[Regularizer, ...] = ()


def trace_training(settings: TracedSettings, batch: Batch) -> TracedMemory:
    """The memory of one training step on a real micro-batch.

    Raises:
        RecipeError: method and model do not go together, or the objective decides by numbers, which a trace has not.
    """
    count, num_supervised = sum(settings.objective.counts(batch).values()), len(batch.supervised)
    method, tracker = settings.method, MemoryTracker(apart="gradients")
    with _shapes(settings.trace) as mode:
        base = base_of_shapes(settings.config, settings.dtype, method.load_options(), method.prepare)
        own = {id(p) for p in base.model.parameters()}
        model = attach(base, method, settings.objective, settings.processor)
        trained = model.trainable()
        tracker.register("frozen", [*model.model.parameters(), *model.model.buffers()])
        tracker.register("trained", trained.values())
        tracker.gradients_of(trained.values())
        if settings.checkpointing:
            enable_gradient_checkpointing(model.model)
        model.model.train()
        optimizer = make_optimizer(model, Plan(settings.train, 2, 1e-4, 0, 0))
        try:
            loss_function = regularized(settings.objective, settings.regularizers, model)
            _run(model, loss_function, _traced(batch, num_supervised, mode), max(count, 1.0), tracker)
        except RuntimeError as error:
            if not _looks_at_numbers(error):
                raise
            name = settings.objective.name
            text = (
                "plan: the loss of {objective} (with its regularizers) looks at numbers, so its memory is not planned yet"
            )
            raise RecipeError(text, objective=name) from None
        gradients = tracker.live["gradients"]
        try:
            with tracker.phase("optimizer", "temporaries"):
                optimizer.step()
        except RuntimeError as error:
            if not _looks_at_numbers(error):
                raise
            name = settings.train.optimizer.name
            raise RecipeError("plan: optimizer {optimizer} looks at numbers: not planned yet", optimizer=name) from None
        tracker.register("optimizer", _states(optimizer))
    return TracedMemory(
        phases={name: x.parts for name, x in tracker.peaks.items()},
        accumulated={name: x.parts for name, x in tracker.peaks_apart.items()},
        frozen=base.num_weights - sum(p.numel() for p in trained.values() if id(p) in own),
        trained=sum(p.numel() for p in trained.values()),
        gradients=gradients,
        optimizer=tracker.live["optimizer"],
        largest_layer=_largest_layer(model.model),
    )


def _run(model: TrainableModel, objective: LossFunction, batch: Batch, count: float, tracker: MemoryTracker) -> None:
    with tracker.phase("forward", "activations"):
        loss = objective.loss(model, batch)
        total = torch.stack([x / count for x in loss.totals.values()]).sum()
        del loss
    with tracker.phase("backward", "temporaries"):
        total.backward()


def _looks_at_numbers(error: RuntimeError) -> bool:
    """Whether code asked a tensor without numbers for them."""
    by_torch = isinstance(error, (DataDependentOutputException, DynamicOutputShapeException))
    return by_torch or ".numpy() is not supported" in str(error)


def _states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))


def _largest_layer(model: nn.Module) -> int:
    """Bytes of the largest transformer layer."""
    layers = (x for x in layer_stack(model).modules() if isinstance(x, nn.ModuleList))
    sizes = (sum(p.numel() * p.element_size() for p in layer.parameters()) for stack in layers for layer in stack)
    return max(sizes, default=0)


@contextmanager
def _shapes(trace: ShapeTrace) -> Iterator[FakeTensorMode]:
    kernels = replaced_kernels(KernelShapes()) if trace.kernels else kernels_disabled()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, tracing_shapes(trace), kernels, no_prefix_sharing():
        yield mode


def _traced(batch: Batch, num_supervised: int, mode: FakeTensorMode) -> TracedBatch:
    def fake(x: Any) -> Any:
        if isinstance(x, Tensor):
            return mode.from_tensor(x)
        return {key: fake(y) for key, y in x.items()} if isinstance(x, dict) else x

    return TracedBatch(**{x.name: fake(getattr(batch, x.name)) for x in fields(Batch)}, num_supervised=num_supervised)
