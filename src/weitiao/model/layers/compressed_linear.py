"""A linear layer whose weight is stored as whole numbers of 4 or 8 bits with scales (core/quantization.py), for inference.

    few rows      compiled kernels unpack the weight in registers: a token reads 1/2 to 1/8 of the bytes (few_bits_linear)
    otherwise     the weight is dequantized for each product and freed after it

Both give the product with the dequantized weight: activations are never rounded. No dequantized copy is kept, so the model
takes as much memory as its file.
"""

import torch
from torch import Tensor, nn

from weitiao.core.quantization import QuantizationScheme, QuantizedWeight
from weitiao.model.kernels.quantized import PackedWeight
from weitiao.model.layers.quantized import INTEGERS, dequantized_by_kernels, few_bits_linear


class CompressedLinear(nn.Module):
    """A linear layer that is read from a compressed file; frozen."""

    packed: nn.Parameter
    scale: nn.Parameter
    zero: nn.Parameter | None
    transposed = False
    _stored: PackedWeight | None = None

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, scheme: QuantizationScheme, dtype: torch.dtype
    ) -> None:
        super().__init__()
        rows, columns = weight.codes.shape
        self.shape, self.scheme, self.dtype = (rows, columns), scheme, dtype
        self.bits = scheme.bits if columns % 2 == 0 else 8  # two weights are in a byte
        packed = weight.codes
        if self.bits == 4:
            pairs = (packed.view(rows, -1, 2) + 8).to(torch.uint8)
            packed = pairs[:, :, 0] | pairs[:, :, 1] << 4
        exact = torch.equal(weight.scale.bfloat16().float(), weight.scale.float())
        self.packed = _frozen(packed)
        self.scale = _frozen(weight.scale.to(torch.bfloat16 if exact else torch.float32))
        self.zero = None if weight.zero_point is None else _frozen(weight.zero_point)
        self.bias = None if bias is None else _frozen(bias)

    @property
    def stored(self) -> PackedWeight:
        """The weight as kernels read it."""
        if self._stored is None or self._stored.codes is not self.packed:
            group, table = self.scheme.group_size or self.shape[1], INTEGERS if self.bits == 4 else None
            self._stored = PackedWeight(self.packed, self.scale, self.shape, group, self.zero, table)
        return self._stored

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """[D_out, D_in] in `dtype`."""
        if (weight := dequantized_by_kernels(self.stored, dtype)) is not None:
            return weight
        codes = packed
        if self.bits == 4:
            codes = (torch.stack((packed & 15, packed >> 4), 2).to(torch.int8) - 8).view(self.shape)
        return QuantizedWeight(codes, self.scale, self.zero).dequantized(dtype)

    @property
    def weight(self) -> Tensor:
        """[D_out, D_in]; dequantized at each access."""
        return self.unpack(self.packed, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return few_bits_linear(x, self.packed, self.bias, self.stored, self.unpack)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """An nn.Linear with the dequantized weight."""
        rows, columns = self.shape
        with torch.device("meta"):
            layer = nn.Linear(columns, rows, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight.contiguous(), requires_grad=False)
        layer.bias = self.bias  # pyright: ignore[reportAttributeAccessIssue]
        return layer


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
