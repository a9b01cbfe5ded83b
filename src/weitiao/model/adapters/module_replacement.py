"""Finding linear layers by name, and putting other modules in their place. Knows modules, knows no method."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import RecipeError
from weitiao.model.layers.compressed_linear import CompressedLinear
from weitiao.model.layers.quantized import QuantizedLinear

LayerType = TypeVar("LayerType", bound=nn.Module)
FEW_BITS = (QuantizedLinear, CompressedLinear)
"""Linear layers whose weight is dequantized for use."""


def is_linear(module: nn.Module) -> bool:
    """nn.Linear, GPT-2's Conv1D (the same with the weight transposed), or either of them quantized."""
    return isinstance(module, (nn.Linear, Conv1D, *FEW_BITS))


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is [D_in, D_out] in the model's own files."""
    return isinstance(module, Conv1D) or (isinstance(module, FEW_BITS) and module.transposed)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(D_out, D_in) of a linear layer, however it is stored."""
    if isinstance(layer, FEW_BITS):
        return layer.shape[0], layer.shape[1]
    weight: Any = layer.weight
    rows, columns = weight.shape
    return (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)


def last_names(names: Collection[str]) -> str:
    """The different last parts of dotted names, for messages: "down_proj, q_proj"."""
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))


def linear_names(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The linear layers that `targets` selects, in the model's order.

    Args:
        targets: "all-linear" (all but the output head), a regular expression for whole names, or last names
            (["q_proj", "v_proj"], or "q_proj"), as in PEFT.

    Raises:
        RecipeError: a target matches no layer.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    if targets == "all-linear":
        return linears
    if isinstance(targets, str) and re.fullmatch(r"\w+", targets) is None:
        selected = [name for name in linears if re.fullmatch(targets, name)]
        unmatched = [] if selected else [targets]
    else:
        suffixes = [targets] if isinstance(targets, str) else list(targets)
        selected = [name for name in linears if any(f".{name}".endswith(f".{suffix}") for suffix in suffixes)]
        unmatched = [suffix for suffix in suffixes if not any(f".{name}".endswith(f".{suffix}") for name in linears)]
    if unmatched:
        raise RecipeError(
            "target_modules: no linear layer matches {target!r}; names are: {names}",
            target=unmatched[0],
            names=last_names(linears),
        )
    return selected


def replace_linears(
    model: nn.Module, targets: str | Sequence[str], make: Callable[[str, nn.Module], LayerType]
) -> dict[str, LayerType]:
    """Freeze the model, then replace each target layer by make(name, layer).

    Returns:
        The new layers by name.
    """
    model.requires_grad_(False)
    layers = {name: make(name, model.get_submodule(name)) for name in linear_names(model, targets)}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return layers


def make_set_enabled(layers: Mapping[str, Any]) -> Callable[[bool], None]:
    """An Attachment's `set_enabled`, for layers that are their base layer where `on` is False."""

    def set_enabled(enabled: bool) -> None:
        for layer in layers.values():
            layer.on = enabled

    return set_enabled


def make_merge(model: nn.Module, layers: Mapping[str, Any]) -> Callable[[], None]:
    """An Attachment's `merge`, for layers whose `merged()` is the base layer with the trained change in its weight."""

    def merge() -> None:
        for name, layer in layers.items():
            model.set_submodule(name, layer.merged())

    return merge


def dequantize_layers(model: nn.Module) -> None:
    """Replace every quantized layer by a plain one with the rounded weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FEW_BITS):
            model.set_submodule(name, module.plain())


def norm_names(model: nn.Module) -> list[str]:
    """Every norm with weights: LayerNorm, RMSNorm and the families' own ones."""
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
    ]


class OriginalWeights:
    """A copy of weights that are trained in place: `set_enabled(False)` swaps it in, `set_enabled(True)` swaps it out."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        parameters = dict(model.named_parameters())
        self.weights: list[Tensor] = [parameters[name] for name in sorted(names)]
        self.copies: list[Tensor] = [weight.detach().clone() for weight in self.weights]
        self.enabled = True

    @torch.no_grad()
    def set_enabled(self, enabled: bool) -> None:
        """Swap the weights and their copies where that changes anything."""
        if enabled != self.enabled:
            for weight, copy in zip(self.weights, self.copies):
                current = weight.detach().clone()
                weight.copy_(copy)
                copy.copy_(current)
            self.enabled = enabled

    def keep_only(self, needed: Callable[[Tensor, Tensor], bool]) -> None:
        """Drop the copies that are not needed.

        Args:
            needed: (weight, its copy) -> whether the copy stays.
        """
        pairs = [(weight, copy) for weight, copy in zip(self.weights, self.copies) if needed(weight, copy)]
        self.weights, self.copies = [weight for weight, _ in pairs], [copy for _, copy in pairs]
