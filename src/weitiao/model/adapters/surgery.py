"""The few cuts that methods share. Knows modules, knows no method."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import RecipeError
from weitiao.model.layers.quantized import QuantizedLinear


def is_linear(module: nn.Module) -> bool:
    """A matrix product: nn.Linear, GPT-2's Conv1D (the same with the weight transposed), or either in fewer bits."""
    return isinstance(module, (nn.Linear, Conv1D, QuantizedLinear))


def is_transposed(module: nn.Module) -> bool:
    """In the model's own files its weight is [D_in, D_out]."""
    return isinstance(module, Conv1D) or (isinstance(module, QuantizedLinear) and module.transposed)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(D_out, D_in) of a layer, however it is stored."""
    if isinstance(layer, QuantizedLinear):
        return layer.shape[0], layer.shape[1]
    weight: Any = layer.weight
    rows, columns = weight.shape
    return (columns, rows) if isinstance(layer, Conv1D) else (rows, columns)


def linear_names(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """The linear layers that `targets` means, in the model's order.

    Args:
        targets: "all-linear" (all but the output head), a regular expression for whole names, or last names
            (["q_proj", "v_proj"], or "q_proj"), as in PEFT.

    Raises:
        RecipeError: nothing matches; the last names there are are listed.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    every = [name for name, module in model.named_modules() if is_linear(module) and module is not head]
    if targets == "all-linear":
        return every
    if isinstance(targets, str) and re.fullmatch(r"\w+", targets) is None:
        found = [name for name in every if re.fullmatch(targets, name)]
        missing = [] if found else [targets]
    else:
        wanted = [targets] if isinstance(targets, str) else list(targets)
        found = [name for name in every if any(name == w or name.endswith("." + w) for w in wanted)]
        missing = [w for w in wanted if not any(name == w or name.endswith("." + w) for name in every)]
    if missing:
        there = sorted({name.rpartition(".")[2] for name in every})
        raise RecipeError(f"target_modules: no linear layer matches {missing[0]!r}; names are: {', '.join(there)}.")
    return found


def set_submodule(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, module)


def wrap(model: nn.Module, targets: str | Sequence[str], make: Callable[[str, nn.Module], nn.Module]) -> dict:
    """Freeze the model, then put make(name, layer) in the place of each linear layer that is meant."""
    model.requires_grad_(False)
    made = {name: make(name, model.get_submodule(name)) for name in linear_names(model, targets)}
    for name, module in made.items():
        set_submodule(model, name, module)
    return made


def enabling(made: Mapping[str, nn.Module]) -> Callable[[bool], None]:
    """An Attachment's `switch` for modules that are the base layer when their `on` is False."""

    def set_enabled(on: bool) -> None:
        for module in made.values():
            module.on = on  # pyright: ignore[reportArgumentType]

    return set_enabled


def folding(model: nn.Module, made: Mapping[str, nn.Module]) -> Callable[[], None]:
    """An Attachment's `merge` for modules whose `fold()` gives the base layer with what was learnt in its weight."""

    def merge() -> None:
        for name, module in made.items():
            set_submodule(model, name, module.fold())  # pyright: ignore[reportCallIssue]

    return merge


def restore(model: nn.Module) -> None:
    """Every layer stored in fewer bits becomes a plain one with the rounded weight."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            set_submodule(model, name, module.plain())


def norm_names(model: nn.Module) -> list[str]:
    """Every norm with weights: LayerNorm, RMSNorm and what families call theirs."""
    return [name for name, module in model.named_modules() if "norm" in type(module).__name__.lower() and _own(module)]


def _own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


class Originals:
    """What weights that are trained in place were at first: `switch(False)` puts them back, `switch(True)` what was
    learnt."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        here = dict(model.named_parameters())
        self.weights = [here[name] for name in sorted(names)]
        self.others = [weight.detach().clone() for weight in self.weights]
        self.on = True

    @torch.no_grad()
    def set_enabled(self, on: bool) -> None:
        """Change the two over."""
        if on != self.on:
            for weight, other in zip(self.weights, self.others):
                now = weight.detach().clone()
                weight.copy_(other)
                other.copy_(now)
            self.on = on
