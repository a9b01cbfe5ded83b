"""Compiled kernels for weights of 4 and 8 bits (quantized.cpp): products with few rows, and weights as plain numbers.

A token reads all weights once, so few bits are fast only where they are unpacked in registers, and not into memory first.
The kernels are used where g++ can compile them, on any CPU; WEITIAO_KERNELS=off disables them.
"""

import ctypes
import subprocess
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from weitiao.core.hardware import cpu_bf16
from weitiao.model.kernels.library import QUANTIZED, Library, compile_and_load, state

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
SCALE_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.uint8: 8}
BLOCK = 32
"""Widths and groups are multiples of it."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_lock = Lock()


class CWeight(ctypes.Structure):
    """`Weight` of quantized.cpp, field by field in the same order."""

    _fields_ = [
        *((x, ctypes.c_void_p) for x in ("codes", "scale", "zero", "table", "nested_table", "nested")),
        *((x, ctypes.c_long) for x in ("columns", "width", "group", "scale_bits", "high_first")),
        ("nested_mean", ctypes.c_float),
    ]


@dataclass
class PackedWeight:
    """A weight [N, K] in few bits: w = (q - zero) scale, or (table[q] - zero) scale."""

    codes: Tensor
    """8 bits: int8 [N, K]. 4 bits: uint8 [N, K / 2], two neighbouring inputs in a byte."""
    scale: Tensor
    """[N, K / group], fp32 or bf16; or uint8, that stand for nested_table[q] nested[i / 256] + nested_mean."""
    shape: tuple[int, int]
    group: int
    """Neighbouring inputs that share a scale."""
    zero: Tensor | None = None
    """int8, as the scales."""
    table: Tensor | None = None
    """4 bits: the 16 values, fp32."""
    high_first: bool = False
    """4 bits: the first of two weights is in the higher bits."""
    nested_table: Tensor | None = None
    nested: Tensor | None = None
    nested_mean: float = 0.0
    _addresses: tuple[int, int] | None = field(default=None, init=False)
    """Of codes and scale when `_c` was made; a layer that is moved or converted has others."""
    _c: CWeight | None = field(default=None, init=False)

    @property
    def bits(self) -> int:
        return 8 if self.table is None else 4

    def as_c(self) -> CWeight | None:
        """As the kernels read it; None: they cannot."""
        addresses = (self.codes.data_ptr(), self.scale.data_ptr())
        if addresses != self._addresses:  # making it takes as long as a small product
            self._addresses, self._c = addresses, self._made() if self._fits() else None
        return self._c

    def _fits(self) -> bool:
        tensors = [x for x in (self.codes, self.scale, self.zero, self.nested) if x is not None]
        on_cpu = all(x.device.type == "cpu" and x.is_contiguous() for x in tensors)
        return on_cpu and self.scale.dtype in SCALE_BITS and self.shape[1] % BLOCK == 0 == self.group % BLOCK

    def _made(self) -> CWeight:
        tensors = (self.codes, self.scale, self.zero, self.table, self.nested_table, self.nested)
        pointers = [None if x is None else x.data_ptr() for x in tensors]
        scale_bits = SCALE_BITS[self.scale.dtype]
        return CWeight(*pointers, *self.shape, self.group, scale_bits, self.high_first, self.nested_mean)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_addresses": None, "_c": None}  # a copy has tensors of its own


class QuantizedKernels:
    """The compiled kernels, by bits and dtype."""

    def __init__(self, library: Library) -> None:
        pointer, weight = ctypes.c_void_p, ctypes.POINTER(CWeight)
        signatures = {"linear": [weight, *[pointer] * 3, ctypes.c_long], "dequantized": [weight, pointer]}
        self._functions: dict[tuple[str, int, torch.dtype], Any] = {}
        for dtype, suffix in NAMES.items():
            for bits in (4, 8):
                for name, types in signatures.items():
                    function = library.loaded[f"{name}_{bits}_{suffix}"]
                    function.argtypes, function.restype = types, None
                    self._functions[name, bits, dtype] = function

        # for more rows it is faster to unpack a weight into memory once, and to multiply with that
        self.max_rows = {torch.float32: 96, torch.bfloat16: 15 if cpu_bf16() else 96}

    def linear(self, x: Tensor, weight: CWeight, bits: int, bias: Tensor | None) -> Tensor:
        """x [M, K] -> [M, N]; x and bias contiguous, in fp32 or bf16."""
        y = x.new_empty(x.shape[0], weight.columns)
        bias_data = None if bias is None else bias.data_ptr()
        self._functions["linear", bits, x.dtype](weight, x.data_ptr(), bias_data, y.data_ptr(), x.shape[0])
        return y

    def dequantized(self, weight: CWeight, bits: int, dtype: torch.dtype) -> Tensor:
        """[N, K], rounded once, from fp32 to `dtype`."""
        y = torch.empty(weight.columns, weight.width, dtype=dtype)
        self._functions["dequantized", bits, dtype](weight, y.data_ptr())
        return y


def quantized_kernels() -> QuantizedKernels | None:
    """The kernels; None: they are disabled, cannot be compiled here, or differ from torch."""
    if state.disabled_reason:
        return None
    with _lock:
        return _kernels()


@cache
def _kernels() -> QuantizedKernels | None:
    try:
        kernels = QuantizedKernels(compile_and_load([QUANTIZED]))
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):  # pure torch then
        return None
    return kernels if all(_error(kernels, dtype) <= limit for dtype, limit in TOLERANCE.items()) else None


def _error(kernels: QuantizedKernels, dtype: torch.dtype) -> float:
    """Of a product with random numbers of 8 bits, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (101, 96), generator=generator, dtype=torch.int8)
    scale, x = torch.rand(101, 3, generator=generator), torch.randn(7, 96, generator=generator).to(dtype)
    expected = x.float() @ (codes.view(101, 3, 32) * scale[:, :, None]).view(101, 96).T
    weight = PackedWeight(codes, scale, (101, 96), 32).as_c()
    assert weight is not None
    y = kernels.linear(x, weight, 8, None)
    return float((y - expected).abs().max() / expected.abs().max())
