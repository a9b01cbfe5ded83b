"""Gradient checkpointing: layers save only their inputs, and run again in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, sec. 3 (one segment per layer):

    forward     x0 --[layer 0]--> x1 --[layer 1]--> x2 ...      saved: x0, x1, x2 [T, D] each, no inner activations
    backward    ... x1 --[layer 1 again]--> inner activations --> gradients; then the activations are freed

It costs a third more compute. The second run must equal the first: torch's `checkpoint` gives it the same random numbers
and the same autocast. Here it also gets the same context variables (which rows are packed, where virtual tokens are),
because another batch may have gone through the model in between. The flags on the layers are transformers' own, so it
works for every family.
"""

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from weitiao.core.errors import RecipeError


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """From now on, the model's layers run again in each backward pass of training.

    Raises:
        RecipeError: the family's layers do not support it.
    """
    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RecipeError(
            "train.gradient_checkpointing: the layers of {model} do not support it; remove this setting.",
            model=type(model).__name__,
        )
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, _checkpoint


def run_checkpointed(layer: Any, run: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """run(layer, *inputs), and again in the backward pass if checkpointing is enabled; for hand-written blocks."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(run, layer), *inputs)
    return run(layer, *inputs)


def _checkpoint(run: Callable[..., Any], *inputs: Any) -> Any:
    context = copy_context()
    return checkpoint(context.run, run, *inputs, use_reentrant=False)
