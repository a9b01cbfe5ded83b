"""A frozen linear layer whose weight is stored in 4 or 8 bits and dequantized for each product.

    4 bits   64 weights of a row share their largest absolute value m; each is the nearest of 16 values times m.
             nf4: values that a normal distribution takes equally often; fp4: 4-bit floats. Double quantization stores
             the m's in 8 bits too: 4.13 bits per weight instead of 4.5. (Dettmers et al. 2023, arXiv 2305.14314, sec. 3)
    8 bits   w = q m / 127, m the largest absolute value of its row. (Dettmers et al. 2022, arXiv 2208.07339, sec. 2.1)

    x [T, D_in] --> W x + b          W = unpack(packed) [D_out, D_in], computed for each product and freed after it;
                                     for few rows, by kernels that unpack it in registers (kernels/quantized.py)

Only the stored weights are quantized. Activations are never rounded, so a row's output does not depend on its neighbors.
(LLM.int8 quantizes them too, and treats a column differently as soon as one row of the batch has an outlier in it.) Weights
are rounded to bf16 before they are packed, so a run in bf16 and its merge in fp32 have the same base.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from weitiao.core.four_bit import BLOCK, NESTED, bnb_functional, pack_4bit
from weitiao.model.kernels.quantized import NAMES, PackedWeight, quantized_kernels
from weitiao.model.layers.saved_tensors import to_autocast_dtype
from weitiao.model.layers.shape_trace import current_trace

INTEGERS = torch.arange(-8.0, 8.0)
"""What 4 bits of whole numbers stand for."""
Unpack = Callable[[Tensor, torch.dtype], Tensor]


@cache
def four_bit_tables(quant_type: str) -> tuple[Tensor, Tensor]:
    """(what 4 bits stand for, what 8 bits of a scale stand for), as bitsandbytes has them."""
    functional = bnb_functional()
    return functional.get_4bit_type(quant_type, "cpu").float(), functional.create_dynamic_map().float()


class QuantizedLinear(nn.Module):
    """A replacement of a linear layer (nn.Linear or Conv1D)."""

    packed: nn.Parameter
    absmax: nn.Parameter
    _stored: PackedWeight | None = None

    def __init__(self, layer: nn.Module, bits: int, quant_type: str, double_quant: bool, device: torch.device) -> None:
        super().__init__()
        weight: Any = layer.weight
        bias: Any = layer.bias
        self.transposed, self.dtype = isinstance(layer, Conv1D), weight.dtype
        rows = weight.detach().to(device).T if self.transposed else weight.detach().to(device)  # [D_out, D_in]
        self.shape, self.bits, self.quant_type = tuple(rows.shape), bits, quant_type
        rows = rows.bfloat16().contiguous()
        if current_trace() is not None:
            stored = _packed_shapes(rows.numel(), len(rows), bits, double_quant)
        else:
            stored = _pack_8bit(rows) if bits == 8 else pack_4bit(rows, quant_type, double_quant)
        for name, tensor in stored.items():  # parameters, so that checks of frozen weights include them
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)

    @classmethod
    def from_stored(
        cls, stored: Mapping[str, Tensor], shape: tuple[int, int], bias: Tensor | None, quant_type: str, dtype: torch.dtype
    ) -> "QuantizedLinear":
        """A layer of 4 bits from what a file holds.

        Args:
            stored: as core/four_bit.py's pack_4bit.
        """
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.transposed, layer.dtype, layer.shape, layer.bits, layer.quant_type = False, dtype, shape, 4, quant_type
        for name, tensor in stored.items():
            layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    @property
    def stored(self) -> PackedWeight:
        """The weight as kernels read it."""
        if self._stored is None or self._stored.codes is not self.packed:
            self._stored = self._as_stored()
        return self._stored

    def _as_stored(self) -> PackedWeight:
        shape, absmax = (self.shape[0], self.shape[1]), self.absmax.data
        if self.bits == 8:
            return PackedWeight(self.packed, absmax / 127, shape, shape[1])
        table, nested_table = four_bit_tables(self.quant_type)
        options: dict[str, Any] = {"table": table, "high_first": True}
        if absmax.dtype == torch.uint8:
            options |= {"nested_table": nested_table, "nested": self.get_parameter("absmax_absmax").data}
            options["nested_mean"] = float(self.get_parameter("absmax_mean"))
        group = BLOCK if shape[1] % BLOCK == 0 else 1  # else a block is not in one row
        return PackedWeight(self.packed, absmax, shape, group, **options)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """[D_out, D_in] in `dtype`."""
        if current_trace() is not None:
            return torch.empty(self.shape, dtype=dtype)
        if self.bits == 8:
            return (packed * (self.absmax / 127)[:, None]).to(dtype)
        return _unpack_4bit(packed, self, self.quant_type, dtype)[: self.shape[0] * self.shape[1]].view(self.shape)

    @property
    def weight(self) -> Tensor:
        """[D_out, D_in]; dequantized at each access."""
        return self.unpack(self.packed, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        if current_trace() is not None:
            return DequantizedProduct.apply(to_autocast_dtype(x), self.packed, self.bias, self.unpack)
        return few_bits_linear(x, self.packed, self.bias, self.stored, self.unpack)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """A plain layer of the original class, with the dequantized weight."""
        rows, columns = self.shape
        with torch.device("meta"):
            layer: Any = Conv1D(rows, columns) if self.transposed else nn.Linear(columns, rows, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight.T.contiguous() if self.transposed else self.weight, requires_grad=False)
        layer.bias = self.bias
        return layer


def few_bits_linear(x: Tensor, packed: Tensor, bias: Tensor | None, stored: PackedWeight, unpack: Unpack) -> Tensor:
    """x W^T + b for x [..., D_in] and a frozen weight in few bits: [..., D_out], in x's dtype.

    Args:
        stored: the weight as kernels read it.
        unpack: (packed, dtype) -> the weight [D_out, D_in].
    """
    x = to_autocast_dtype(x)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return DequantizedProduct.apply(x, packed, bias, unpack)
    bias = None if bias is None else bias.to(x.dtype)
    kernels, weight = quantized_kernels(), stored.as_c()
    few = kernels is not None and 0 < x.numel() <= kernels.max_rows.get(x.dtype, 0) * x.shape[-1]
    if kernels is None or weight is None or not few:
        return linear(x, unpack(packed, x.dtype), bias)
    y = kernels.linear(x.reshape(-1, x.shape[-1]).contiguous(), weight, stored.bits, bias)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], stored.shape[0])


def dequantized_by_kernels(stored: PackedWeight, dtype: torch.dtype) -> Tensor | None:
    """The weight [D_out, D_in]; None: there are no kernels for it."""
    kernels, weight = quantized_kernels(), stored.as_c()
    return (
        None if kernels is None or weight is None or dtype not in NAMES else kernels.dequantized(weight, stored.bits, dtype)
    )


class DequantizedProduct(torch.autograd.Function):
    """x W^T + b; dx = g W. Only the packed weight is saved for the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, bias: Tensor | None, unpack: Any) -> Tensor:
        ctx.unpack, ctx.bias_dtype = unpack, None if bias is None else bias.dtype
        ctx.save_for_backward(packed)
        return linear(x, unpack(packed, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (packed,), g = ctx.saved_tensors, grads[0]
        dx = g @ ctx.unpack(packed, g.dtype) if ctx.needs_input_grad[0] else None
        db = g.flatten(0, -2).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return dx, None, db, None


def _pack_8bit(rows: Tensor) -> dict[str, Tensor]:
    absmax = rows.abs().amax(1).float()  # [D_out]
    scaled = (rows.float() * (127 / absmax.clamp(min=1e-30))[:, None]).round()
    return {"packed": scaled.to(torch.int8), "absmax": absmax}


def _packed_shapes(size: int, rows: int, bits: int, double_quant: bool) -> dict[str, Tensor]:
    """What the two packings store, for a trace of shapes."""
    if bits == 8:
        return {"packed": torch.empty(rows, size // rows, dtype=torch.int8), "absmax": torch.empty(rows)}
    blocks = -(-size // BLOCK)
    packed = {"packed": torch.empty(blocks * BLOCK // 2, 1, dtype=torch.uint8), "absmax": torch.empty(blocks)}
    if double_quant:
        packed |= {"absmax": torch.empty(blocks, dtype=torch.uint8), "absmax_absmax": torch.empty(-(-blocks // NESTED))}
    return packed


def _unpack_4bit(packed: Tensor, layer: nn.Module, quant_type: str, dtype: torch.dtype) -> Tensor:
    """The weight, flat, with the padding of its last block."""
    functional, absmax = bnb_functional(), layer.get_parameter("absmax").data
    if absmax.dtype == torch.uint8:
        mean, absmax_absmax = layer.get_parameter("absmax_mean").data, layer.get_parameter("absmax_absmax").data
        absmax = functional.dequantize_blockwise(absmax, absmax=absmax_absmax, blocksize=NESTED) + mean
    state = functional.QuantState(
        absmax=absmax, shape=(len(absmax), BLOCK), dtype=dtype, blocksize=BLOCK, quant_type=quant_type
    )
    return functional.dequantize_4bit(packed.data, state).flatten()
