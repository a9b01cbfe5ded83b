"""The few cuts that methods share. Knows modules, knows no method."""

import re
from collections.abc import Callable, Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import RecipeError


def is_linear(module: nn.Module) -> bool:
    """A matrix product: nn.Linear, or GPT-2's Conv1D (the same with the weight transposed)."""
    return isinstance(module, (nn.Linear, Conv1D))


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


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, module)


def wrap(model: nn.Module, targets: str | Sequence[str], make: Callable[[str, nn.Module], nn.Module]) -> dict:
    """Freeze the model, then put make(name, layer) in the place of each linear layer that is meant."""
    model.requires_grad_(False)
    made = {name: make(name, model.get_submodule(name)) for name in linear_names(model, targets)}
    for name, module in made.items():
        put(model, name, module)
    return made
