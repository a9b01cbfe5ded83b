"""A linear layer whose weight is stored as whole numbers of 4 or 8 bits with scales (core/quantization.py), for inference.

    bf16, fp16   torch's CPU kernels, which unpack a weight in registers: _weight_int8pack_mm for 8 bits with one scale for
                 each output, _weight_int4pack_mm_for_cpu for 4 bits in groups. A token reads 1/2 to 1/4 of the bytes
    otherwise    the weight is dequantized for each product and freed after it: exact, and no more memory than one layer

torch's kernels have no public name, so each is compared with a dequantized product on random numbers before it is used,
once per process (`kernel_for`); where it is missing or differs, products dequantize. In fp32 these kernels are not used:
they are 10 to 40 times slower than a dequantized product (measured with torch 2.13).
"""

from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weitiao.core.hardware import cpu_bf16, device
from weitiao.core.quantization import QuantizationScheme, QuantizedWeight, quantize
from weitiao.model.layers.quantized import DequantizedProduct
from weitiao.model.layers.saved_tensors import to_autocast_dtype

# private names of torch; kernel_for checks them
int8_product: Any = getattr(torch, "_weight_int8pack_mm", None)
int4_product: Any = getattr(torch, "_weight_int4pack_mm_for_cpu", None)
int4_pack: Any = getattr(torch, "_convert_weight_to_int4pack_for_cpu", None)
Kernel = Literal["", "int8", "int4"]
"""Which of torch's kernels; "": none."""
MAX_ROWS = 32  # of int8 with bf16 instructions: for more, a dequantized product is faster
GROUPS = (32, 64, 128, 256)  # sizes that the int4 kernel takes
TOLERANCE = 2e-2  # of the largest output, in bf16


class CompressedLinear(nn.Module):
    """A linear layer that is read from a compressed file; frozen."""

    packed: nn.Parameter
    scale: nn.Parameter
    zero: nn.Parameter | None
    transposed = False

    def __init__(
        self, weight: QuantizedWeight, bias: Tensor | None, scheme: QuantizationScheme, dtype: torch.dtype
    ) -> None:
        super().__init__()
        rows, columns = weight.codes.shape
        self.shape, self.bits, self.scheme, self.dtype = (rows, columns), scheme.bits, scheme, dtype
        self.kernel: Kernel = kernel_for(scheme, rows, dtype)
        zero = weight.zero_point
        if self.kernel == "int4":
            packed, scale, zero = _int4_layout(weight, dtype)
        elif scheme.bits == 4:
            shifted = (weight.codes.view(rows, -1, 2) + 8).to(torch.uint8)
            packed, scale = shifted[:, :, 0] | shifted[:, :, 1] << 4, weight.scale.to(dtype)
        else:
            packed, scale = weight.codes, weight.scale.to(dtype)
        self.packed = _frozen(packed)
        self.scale = _frozen(scale)
        self.zero = None if zero is None else _frozen(zero)
        self.bias = None if bias is None else _frozen(bias)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """[D_out, D_in] in `dtype`."""
        rows, columns = self.shape
        if self.kernel == "int4":  # its layout is torch's own: a product with the identity reads it
            identity = torch.eye(columns, dtype=self.dtype)
            return _int4_product(identity, packed, self.group, self.scale).T.to(dtype)
        if self.bits == 8:
            return QuantizedWeight(packed, self.scale, self.zero).dequantized(dtype)
        weight = torch.empty(rows, columns // 2, 2, dtype=torch.float32, device=packed.device)
        weight[:, :, 0], weight[:, :, 1] = packed & 15, packed >> 4
        groups = weight.view(
            rows, -1, self.group
        )  # in place: each pass over the weight takes as long as a product of one token
        scale = self.scale.float()[:, :, None]
        zero = 8 if self.zero is None else self.zero.float()[:, :, None] + 8
        return groups.sub_(zero).mul_(scale).view(rows, columns).to(dtype)

    @property
    def group(self) -> int:
        return self.scheme.group_size or self.shape[1]

    @property
    def weight(self) -> Tensor:
        """[D_out, D_in]; dequantized at each access."""
        return self.unpack(self.packed, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = to_autocast_dtype(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return DequantizedProduct.apply(x, self.packed, self.bias, self.unpack)
        rows = x.flatten(0, -2)
        if self.kernel == "int4" and x.dtype == self.dtype:
            y = _int4_product(rows, self.packed, self.group, self.scale)
        elif self.kernel == "int8" and x.dtype == self.dtype and (len(rows) <= MAX_ROWS or not cpu_bf16()):
            y = int8_product(rows.contiguous(), self.packed, self.scale[:, 0])
        else:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return linear(x, self.unpack(self.packed, x.dtype), bias)
        y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.view(*x.shape[:-1], self.shape[0])

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


def _int4_layout(weight: QuantizedWeight, dtype: torch.dtype) -> tuple[Tensor, Tensor, None]:
    """(packed as torch's kernel reads it, scales and zeros [groups, D_out, 2]): w = (q + 8 - 8) scale + zero."""
    packed = int4_pack(weight.codes.to(torch.int32) + 8, 1)
    scale = weight.scale.float()
    zero = torch.zeros_like(scale) if weight.zero_point is None else -weight.zero_point.float() * scale
    return packed, torch.stack([scale, zero], -1).transpose(0, 1).contiguous().to(dtype), None


def _int4_product(x: Tensor, packed: Tensor, group: int, scales_and_zeros: Tensor) -> Tensor:
    return int4_product(x.contiguous(), packed, group, scales_and_zeros)


def kernel_for(scheme: QuantizationScheme, rows: int, dtype: torch.dtype) -> Kernel:
    """The kernel that multiplies with weights of this scheme, checked on random numbers."""
    if device().type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return ""
    if scheme.bits == 8:
        return "int8" if scheme.symmetric and scheme.group_size is None and _agrees("int8", scheme, rows, dtype) else ""
    return "int4" if scheme.group_size in GROUPS and _agrees("int4", scheme, rows, dtype) else ""


@cache
@torch.no_grad()
def _agrees(kernel: Kernel, scheme: QuantizationScheme, rows: int, dtype: torch.dtype) -> bool:
    """Whether torch has the kernel, and it multiplies as a dequantized product does."""
    generator = torch.Generator().manual_seed(0)
    columns = 2 * (scheme.group_size or 64)
    quantized = quantize(torch.randn(rows, columns, generator=generator), scheme, dtype)
    x = torch.randn(3, columns, generator=generator).to(dtype)
    try:
        if kernel == "int8":
            y = int8_product(x, quantized.codes, quantized.scale[:, 0].contiguous())
        else:
            packed, scales, _ = _int4_layout(quantized, dtype)
            y = _int4_product(x, packed, scheme.group_size or columns, scales)
    except (TypeError, RuntimeError, NotImplementedError):
        return False
    expected = x.float() @ quantized.dequantized(torch.float32).T
    return bool((y.float() - expected).abs().max() <= TOLERANCE * expected.abs().max())
