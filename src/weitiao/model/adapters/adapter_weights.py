"""The weights of one adapter by layer: taken from a model that it is attached to, or read from its file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.low_rank import LowRank, LowRankLinear
from weitiao.model.adapters.peft_format import peft_name


class Factors(NamedTuple):
    """The change s B A of a layer's weight."""

    a: Tensor
    """[R, D_in]"""
    b: Tensor
    """[D_out, R]"""
    scale: float


@dataclass(frozen=True)
class LowRankAdapter:
    """The changes of one adapter, by the names of the base model's layers."""

    factors: Mapping[str, Factors]
    looped: Mapping[str, LowRankLinear] = field(default_factory=dict)
    """Layers whose output is not the base's plus a low-rank product (DoRA)."""

    @classmethod
    def of_layers(cls, layers: Mapping[str, LowRankLinear]) -> "LowRankAdapter":
        """From layers that were taken out of a model with `detach`."""
        stacked = {x: layer for x, layer in layers.items() if is_plain(layer)}
        factors: dict[str, Factors] = {}
        for x, layer in stacked.items():
            a, b = layer.factors()
            factors[x] = Factors(a.detach(), b.detach(), layer.scale)
        return cls(factors, {x: layer for x, layer in layers.items() if x not in stacked})

    @torch.no_grad()
    def check(self, name: str) -> None:
        """
        Args:
            name: the adapter's, for the message.

        Raises:
            ModelError: a weight is not finite, or no weight of the base would change.
        """
        for layer, (a, b, _) in self.factors.items():
            if not (math.isfinite(a.sum()) and math.isfinite(b.sum())):  # inf and NaN remain in a sum
                raise ModelError("{name}: the adapter's weights in {layer} are not finite numbers.", name=name, layer=layer)
        if not self.looped and not any(bool(b.any()) and bool(a.any()) for a, b, _ in self.factors.values()):
            raise ModelError(
                "{name} changes nothing: its low-rank products are all zero. Was it trained, and was its trained result "
                "saved?",
                name=name,
            )


def is_plain(layer: LowRankLinear) -> bool:
    """Whether the layer's output is its base's plus a low-rank product of the input."""
    return type(layer).forward_from is LowRankLinear.forward_from


def detach(model: nn.Module, attachment: Attachment, method: Method | type[Method], name: str) -> dict[str, LowRankLinear]:
    """Remove a low-rank method from the model, which then is the base model again.

    Args:
        name: the adapter's, for the message.

    Returns:
        The method's layers, by the names of the base layers that are back in their place.

    Raises:
        ModelError: the method changed anything else.
    """
    layers = {x: layer for x, layer in model.named_modules() if isinstance(layer, LowRankLinear)}
    own_parameters = {f"{x}.{parameter}" for x, layer in layers.items() for parameter in layer.own_parameters}
    shares = bool(layers) and attachment.trainable == own_parameters and shares_base(method)
    if not shares:
        raise cannot_share(name)
    restore_base_layers(model)
    return layers


def restore_base_layers(model: nn.Module) -> None:
    """Put the base layers back in the place of all low-rank layers."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRankLinear):
            model.set_submodule(name, layer.base_layer)


def shares_base(method: Method | type[Method]) -> bool:
    """Whether all that the method changes are linear layers, each by a low-rank change that leaves the base's weights."""
    return (
        method.low_rank and method.starts_at_base and not method.rounds_base and getattr(method, "bias", "none") == "none"
    )


def is_plain_lora(method: Method) -> TypeGuard[LowRank]:
    """Whether A and B of each layer are all that its file holds."""
    return isinstance(method, LowRank) and shares_base(method) and getattr(method, "init", "") != "pissa"


def cannot_share(name: str) -> ModelError:
    """
    Args:
        name: of an adapter that is more than a low-rank change.
    """
    return ModelError(
        "{name} is not only a low-rank change of linear layers (lora, dora), so it cannot share batches with other "
        "adapters. Load it alone, or merge it into a model of its own",
        name=name,
    )


def read_low_rank(file: Path, method: LowRank, shapes: Mapping[str, tuple[int, int]], is_peft: bool) -> LowRankAdapter:
    """Read a LoRA's tensors without attaching it.

    Args:
        shapes: (D_out, D_in) of each layer that the method changes.
        is_peft: the tensors have PEFT's names; otherwise those of a Run.

    Raises:
        ModelError: the file cannot be read, or its tensors are not those of the method.
    """
    factors: dict[str, Factors] = {}
    try:
        with safe_open(file, "pt") as tensors:
            names = set(tensors.keys())
            for layer, (out_features, in_features) in shapes.items():
                rank = method.rank_of(layer)
                expected = {"lora_A": (rank, in_features), "lora_B": (out_features, rank)}
                loaded: list[Tensor] = []
                for factor, shape in expected.items():
                    name = peft_name(f"{layer}.{factor}") if is_peft else f"{layer}.{factor}"
                    if name not in names:
                        raise _other_tensors(name, len(names ^ _names(shapes, is_peft)))
                    names.discard(name)
                    loaded.append(tensors.get_tensor(name))
                    if tuple(loaded[-1].shape) != shape:
                        raise ModelError(
                            "the adapter's {name} has shape {found}, but by its config {expected}",
                            name=name,
                            found=tuple(loaded[-1].shape),
                            expected=shape,
                        )
                factors[layer] = Factors(loaded[0], loaded[1], method.scale(rank))
    except (OSError, SafetensorError) as error:
        raise ModelError("{file} is missing or damaged ({error}).", file=file, error=str(error)) from None
    if names:
        raise _other_tensors(min(names), len(names))
    return LowRankAdapter(factors)


def _names(shapes: Mapping[str, tuple[int, int]], is_peft: bool) -> set[str]:
    names = {f"{layer}.{factor}" for layer in shapes for factor in ("lora_A", "lora_B")}
    return set(map(peft_name, names)) if is_peft else names


def _other_tensors(name: str, count: int) -> ModelError:
    return ModelError(
        "the adapter's tensors do not match its config: {name} and {others} more differ", name=name, others=count - 1
    )
