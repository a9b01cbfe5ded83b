"""Weights as whole numbers of a few bits, with a scale for each group: the format `pack-quantized` of compressed-tensors.

    scale_g = (max - min) / (2^b - 1)        zero_g = round(-2^(b-1) - min / scale_g)          asymmetric
    scale_g = max |w| / ((2^b - 1) / 2)      zero_g = 0                                        symmetric
    q = clamp(round(w / scale_g) + zero_g)   w' = (q - zero_g) scale_g

A group is `group_size` neighbouring inputs of one output, or all of them (one scale for each output channel). Rounding is
to the nearest (ties to even). Scales are rounded to what they are stored in before the weights are divided by them, so
every reader gets the same weights. Files hold, for each layer:

    weight_packed       int32 [D_out, ceil(D_in b / 32)]     q + 2^(b-1), the first number in the lowest bits
    weight_scale        [D_out, groups]
    weight_zero_point   int32 [D_out b / 32, groups]         asymmetric: zero + 2^(b-1), packed along D_out
    weight_shape        [D_out, D_in]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitiao.core.errors import InvalidValue

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
PACKED, SCALE, ZERO_POINT, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
BITS = (4, 8)


@dataclass(frozen=True)
class QuantizationScheme:
    """How weights are rounded."""

    bits: int
    group_size: int | None = None
    """Inputs that share a scale; None: all of an output channel."""
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight [D_out, D_in] in a few bits."""

    codes: Tensor
    """int8 [D_out, D_in]"""
    scale: Tensor
    """[D_out, groups], in the dtype that it is stored in."""
    zero_point: Tensor | None
    """int8 [D_out, groups]; None: symmetric."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight that the numbers stand for; computed in fp32, rounded once."""
        rows, groups = self.scale.shape
        codes = self.codes.view(rows, groups, -1).float()
        if self.zero_point is not None:
            codes = codes - self.zero_point.float()[:, :, None]
        return (codes * self.scale.float()[:, :, None]).view(rows, -1).to(dtype)


def quantize(weight: Tensor, scheme: QuantizationScheme, dtype: torch.dtype) -> QuantizedWeight:
    """Round a weight [D_out, D_in] to the nearest.

    Args:
        dtype: that the scales are stored in.

    Raises:
        InvalidValue: its inputs cannot be divided into groups.
    """
    rows, columns = weight.shape
    group = scheme.group_size or columns
    if columns % group:
        raise InvalidValue(
            "{columns:,} inputs cannot be divided into groups of {group}. Sizes that divide them: {sizes}",
            columns=columns,
            group=group,
            sizes=", ".join(str(x) for x in (32, 64, 128) if columns % x == 0) or "none",
        )
    groups = weight.float().view(rows, columns // group, group)
    low = high = torch.zeros(())
    if scheme.symmetric:
        span = groups.abs().amax(2) / ((scheme.highest - scheme.lowest) / 2)
    else:  # 0 is always among the values
        low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
        span = (high - low) / (scheme.highest - scheme.lowest)
    scale = torch.where(span > 0, span, torch.ones_like(span)).to(dtype)
    scale = scale.clamp(min=torch.finfo(dtype).tiny)  # fp16: a scale that became 0
    divisor = scale.float()
    codes, zero = groups / divisor[:, :, None], None
    if scheme.symmetric:
        codes = codes.round()
    else:
        zero = (scheme.lowest - low / divisor).round().clamp(scheme.lowest, scheme.highest)
        codes = codes.round() + zero[:, :, None]
        zero = zero.to(torch.int8)
    codes = codes.clamp(scheme.lowest, scheme.highest).to(torch.int8)
    return QuantizedWeight(codes.view(rows, columns), scale, zero)


# -- files ------------------------------------------------------------------------------------------------------------


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 [N, K] -> int32 [N, ceil(K bits / 32)]."""
    per_word = 32 // bits
    padded = torch.nn.functional.pad(codes.to(torch.int32) + 2 ** (bits - 1), (0, -codes.shape[1] % per_word))
    words = padded.view(len(codes), -1, per_word)
    packed = torch.zeros(words.shape[:2], dtype=torch.int32, device=codes.device)
    for i in range(per_word):
        packed |= words[:, :, i] << (bits * i)
    return packed


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int32 [N, ceil(K bits / 32)] -> int8 [N, K]."""
    per_word, mask = 32 // bits, 2**bits - 1
    codes = torch.empty((*packed.shape, per_word), dtype=torch.int8, device=packed.device)
    for i in range(per_word):
        codes[:, :, i] = ((packed >> (bits * i)) & mask) - 2 ** (bits - 1)
    return codes.view(len(packed), -1)[:, :columns].contiguous()


def as_tensors(name: str, weight: QuantizedWeight, scheme: QuantizationScheme) -> dict[str, Tensor]:
    """What a file holds of the layer `name`."""
    tensors = {
        PACKED: pack(weight.codes, scheme.bits),
        SCALE: weight.scale,
        SHAPE: torch.tensor(weight.codes.shape),
    }
    if weight.zero_point is not None:
        tensors[ZERO_POINT] = pack(weight.zero_point.T.contiguous(), scheme.bits).T.contiguous()
    return {f"{name}.{key}": x for key, x in tensors.items()}


def from_tensors(tensors: Mapping[str, Tensor], scheme: QuantizationScheme) -> QuantizedWeight:
    """The weight that a file holds as PACKED, SCALE, SHAPE and ZERO_POINT.

    Raises:
        InvalidValue: they do not fit together.
    """
    packed, scale, zero = tensors[PACKED], tensors[SCALE], tensors.get(ZERO_POINT)
    shape: list[int] = tensors[SHAPE].flatten().tolist()
    rows, columns = shape if len(shape) == 2 else (0, 0)
    words = -(-columns * scheme.bits // 32)
    group = scheme.group_size or max(columns, 1)
    fits = packed.dtype == torch.int32 and tuple(packed.shape) == (rows, words) and columns % group == 0
    if not fits or tuple(scale.shape) != (rows, columns // group) or not bool(torch.isfinite(scale).all()):
        raise InvalidValue("a quantized weight of shape {shape} does not fit its scales", shape=str(shape))
    if (zero is None) != scheme.symmetric:
        raise InvalidValue("zero points must be there if and only if the config says `symmetric: false`")
    if zero is not None:
        zero = unpack(zero.T.contiguous(), scheme.bits, rows).T.contiguous()
        if zero.shape != scale.shape:
            raise InvalidValue("a quantized weight of shape {shape} does not fit its scales", shape=str(shape))
    return QuantizedWeight(unpack(packed, scheme.bits, columns), scale, zero)


# -- config.json ------------------------------------------------------------------------------------------------------


def quantization_config(scheme: QuantizationScheme, ignore: Sequence[str]) -> dict[str, Any]:
    """`quantization_config` of config.json, as compressed-tensors, transformers and vLLM read it.

    Args:
        ignore: linear layers that are not quantized, by name.
    """
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if scheme.group_size else "channel",
        "group_size": scheme.group_size,
        "dynamic": False,
        "observer": "minmax",
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": list(ignore),
        "config_groups": {"group_0": group},
    }


def scheme_of(config: Any) -> QuantizationScheme | None:
    """The scheme that a `quantization_config` describes; None: it is another format, which transformers has to read.

    Only weights in one scheme of 4 or 8 bits, without a permutation of the inputs and with nothing done to activations.
    """
    if not isinstance(config, Mapping) or config.get("quant_method") != METHOD or config.get("format") != FORMAT:
        return None
    groups = config.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1 or config.get("kv_cache_scheme"):
        return None
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or group.get("input_activations") or group.get("output_activations"):
        return None
    bits, size, symmetric = weights.get("num_bits"), weights.get("group_size"), weights.get("symmetric", True)
    strategy = weights.get("strategy")
    usual = weights.get("type", "int") == "int" and not weights.get("dynamic") and weights.get("actorder") != "group"
    if not usual or bits not in BITS or type(symmetric) is not bool or strategy not in ("group", "channel"):
        return None
    if strategy == "channel":
        return QuantizationScheme(bits, None, symmetric)
    return QuantizationScheme(bits, size, symmetric) if type(size) is int and size > 0 else None
