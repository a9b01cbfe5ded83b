"""Open a folder with linear weights in few bits, and leave them so: they take as much memory as the file.

    compressed-tensors, pack-quantized     4 or 8 bits with scales      layers/compressed_linear.py
    bitsandbytes, nf4 or fp4               4 bits, 16 values            layers/quantized.py

transformers opens both too, with those packages; but it unpacks the first at the first forward pass, and gives no layer
that adapters can be trained on in a compute dtype of our choice. Other formats are left to transformers.
"""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core import four_bit
from weitiao.core.errors import InvalidValue
from weitiao.core.quantization import PACKED, SCALE, SHAPE, ZERO_POINT, QuantizationScheme, from_tensors, scheme_of
from weitiao.model.layers.compressed_linear import CompressedLinear
from weitiao.model.layers.quantized import QuantizedLinear
from weitiao.model.loading.weights import read_weights, safetensors_files

PARTS = (PACKED, SCALE, ZERO_POINT, SHAPE)
Parts = dict[str, Tensor]
MakeLayer = Callable[[Parts, Tensor | None], CompressedLinear | QuantizedLinear]
"""(what a file holds of a layer, its bias) -> the layer."""


def load_compressed(
    auto_class: Any, folder: Path, config: Any, dtype: torch.dtype, attention: str
) -> tuple[nn.Module, dict] | None:
    """(model, loading info) as from `auto_class.from_pretrained(folder)`; None: the folder is in another format.

    Raises:
        InvalidValue: its tensors do not fit its config.
    """
    quantization = _as_dict(getattr(config, "quantization_config", None))
    scheme = scheme_of(quantization)
    is_four_bit = quantization.get("quant_method") == "bitsandbytes" and quantization.get("load_in_4bit") is True
    files = safetensors_files(folder) if scheme or is_four_bit else []
    if not files:
        return None
    plain = copy.deepcopy(config)
    del plain.quantization_config
    weights = read_weights(files, dtype)
    layers = _take_packed(weights) if scheme else _take_four_bit(weights)
    placeholder = torch.zeros((), dtype=dtype)  # of no memory, in the place of what becomes a layer of its own
    for name, (_, shape) in layers.items():
        weights[f"{name}.weight"] = placeholder.expand(*shape)
    with torch.device("meta"):
        family = type(auto_class.from_config(plain, attn_implementation=attention))
    options = {"state_dict": weights, "config": plain, "dtype": dtype}
    model, info = family.from_pretrained(None, **options, attn_implementation=attention, output_loading_info=True)
    make = _maker(scheme, dtype)
    for name in list(layers):
        parts, shape = layers.pop(name)
        _replace(model, name, parts, shape, make)
    model.name_or_path = plain.name_or_path = str(folder)
    return model, info


def _as_dict(quantization: Any) -> Mapping[str, Any]:
    """A config's quantization_config; {}: there is none."""
    return quantization if isinstance(quantization, Mapping) else quantization.to_dict() if quantization else {}


def _maker(scheme: QuantizationScheme | None, dtype: torch.dtype) -> MakeLayer:
    def compressed(parts: Parts, bias: Tensor | None) -> CompressedLinear:
        assert scheme is not None
        return CompressedLinear(from_tensors(parts, scheme), bias, scheme, dtype)

    def four_bits(parts: Parts, bias: Tensor | None) -> QuantizedLinear:
        stored, shape, quant_type = four_bit.from_tensors(parts)
        return QuantizedLinear.from_stored(stored, shape, bias, quant_type, dtype)

    return compressed if scheme else four_bits


def _take_packed(weights: dict[str, Tensor]) -> dict[str, tuple[Parts, tuple[int, ...]]]:
    """Remove the tensors of packed layers: a layer's name -> its tensors, its shape.

    Raises:
        InvalidValue: a layer lacks one.
    """
    packed: dict[str, Parts] = {}
    for name in [x for x in weights if x.rpartition(".")[2] in PARTS]:
        layer, _, part = name.rpartition(".")
        packed.setdefault(layer, {})[part] = weights.pop(name)
    for layer, parts in packed.items():
        if missing := {PACKED, SCALE, SHAPE} - parts.keys():
            raise InvalidValue("{name} lacks {missing}", name=layer, missing=", ".join(sorted(missing)))
    return {name: (parts, _checked(name, parts[SHAPE].flatten().tolist())) for name, parts in packed.items()}


def _take_four_bit(weights: dict[str, Tensor]) -> dict[str, tuple[Parts, tuple[int, ...]]]:
    """The same for bitsandbytes' 4 bits; the part "" is the packed weight."""
    layers: dict[str, tuple[Parts, tuple[int, ...]]] = {}
    for state in [x for x in weights if f".weight.{four_bit.STATE}" in x]:
        name = state.partition(f".weight.{four_bit.STATE}")[0]
        own = [x for x in weights if x == f"{name}.weight" or x.startswith(f"{name}.weight.")]
        parts = {x.removeprefix(f"{name}.weight").removeprefix("."): weights.pop(x) for x in own}
        layers[name] = parts, _checked(name, list(four_bit.from_tensors(parts)[1]))
    return layers


def _checked(name: str, shape: list[int]) -> tuple[int, ...]:
    if len(shape) != 2 or not all(type(x) is int and 0 < x < 2**31 for x in shape):
        raise InvalidValue("{name}: a weight cannot have the shape {shape}", name=name, shape=str(shape))
    return tuple(shape)


def _replace(model: Any, name: str, parts: Parts, shape: tuple[int, ...], make: MakeLayer) -> None:
    """Put a packed layer in the place of the linear layer of its name.

    Raises:
        InvalidValue: the model has no such layer, or one of another shape.
    """
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules())
    own = next((x for x in (name, name.removeprefix(prefix), prefix + name) if x in modules), None)
    layer = modules.get(own) if own else None
    if own is None or type(layer) is not nn.Linear or tuple(layer.weight.shape) != shape:
        raise InvalidValue("the model has no linear layer {name} of shape {shape}", name=name, shape=str(shape))
    model.set_submodule(own, make(parts, None if layer.bias is None else layer.bias.detach()))
