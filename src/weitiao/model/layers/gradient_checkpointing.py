"""Gradient checkpointing: layers keep only what they are given, and run once more in the backward pass.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, sec. 3 (one segment a layer):

    forward     x0 --[layer 0]--> x1 --[layer 1]--> x2 ...      kept: x0, x1, x2 [T, D] each, nothing from inside
    backward    ... x1 --[layer 1 again]--> its insides --> gradients, and they are gone

A third more compute. The second run must be the first: torch's `checkpoint` gives it the same random numbers and the same
autocast; here it also gets the context variables back (which rows are packed, where slots stand), for by then another
batch may have gone through the model. The flags on the layers are transformers' own, so every family has them.
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
    """From now on, the model's layers run once more in each backward pass while it trains.

    Raises:
        RecipeError: the family's layers cannot.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RecipeError(
            f"train.gradient_checkpointing: the layers of {type(model).__name__} know no gradient checkpointing; leave it."
        )
    for layer in layers:
        layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, _again  # pyright: ignore


def through(layer: Any, run: Callable[..., Tensor], *given: Any) -> Tensor:
    """run(layer, *given), and once more in the backward pass if the layer is told so: for hand-written blocks."""
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(partial(run, layer), *given)
    return run(layer, *given)


def _again(run: Callable[..., Any], *given: Any) -> Any:
    now = copy_context()
    return checkpoint(now.run, run, *given, use_reentrant=False)
