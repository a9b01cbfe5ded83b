"""Compiled kernels for generation (generation.cpp): products with few rows, and attention to cached keys.

BLAS sums a product of one row in another order than one of thirty, and has no good kernels in between. These read each
weight once for all rows, and give a row the same bits alone and in any batch. They are used where g++ can compile them, on
any CPU; WEITIAO_KERNELS=off disables them.
"""

import ctypes
import subprocess
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from weitiao.core.hardware import cpu_bf16
from weitiao.model.kernels.library import GENERATION, Library, compile_and_load, state

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_lock = Lock()


class CachedAttention(ctypes.Structure):
    """`Cached` of generation.cpp, field by field in the same order."""

    _fields_ = [
        *((x, ctypes.c_void_p) for x in ("q", "k", "v", "keys", "values", "y")),
        *((x, ctypes.c_long) for x in ("tokens", "heads", "groups", "width", "value_width", "length", "window")),
        *((x, ctypes.c_float) for x in ("scale", "softcap")),
        *((x, ctypes.c_void_p) for x in ("slots", "positions", "attends")),
    ]


class GenerationKernels:
    """The compiled kernels, by dtype."""

    def __init__(self, library: Library) -> None:
        names = {torch.float32: "fp32", torch.bfloat16: "bf16"}
        self._linear = {dtype: library.loaded[f"linear_{name}"] for dtype, name in names.items()}
        self._attend = {dtype: library.loaded[f"attend_cached_{name}"] for dtype, name in names.items()}
        for function in self._linear.values():
            function.argtypes, function.restype = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3, None
        for function in self._attend.values():
            function.argtypes, function.restype = [ctypes.POINTER(CachedAttention)], None
        # with bf16 instructions, torch's products are as fast from a few rows on; in fp32 they are from 48 on
        self.max_rows = {torch.float32: 48, torch.bfloat16: 4 if cpu_bf16() else 64}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [M, K], weight [N, K] -> [M, N]; contiguous tensors of one dtype."""
        y = x.new_empty(x.shape[0], weight.shape[0])
        self._linear[x.dtype](
            x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), y.data_ptr(), *x.shape, len(weight)
        )
        return y

    def attend(self, dtype: torch.dtype, arguments: CachedAttention) -> None:
        """Write new keys and values, and attend to all cached ones."""
        self._attend[dtype](ctypes.byref(arguments))


def generation_kernels() -> GenerationKernels | None:
    """The kernels; None: they are disabled, cannot be compiled here, or differ from torch."""
    if state.disabled_reason:
        return None
    with _lock:
        return _kernels()


@cache
def _kernels() -> GenerationKernels | None:
    try:
        kernels = GenerationKernels(compile_and_load([GENERATION]))
    except (OSError, ValueError, AttributeError, subprocess.SubprocessError):  # pure torch then; `inference.engine` says so
        return None
    return kernels if all(_error(kernels, dtype) <= limit for dtype, limit in TOLERANCE.items()) else None


def _error(kernels: GenerationKernels, dtype: torch.dtype) -> float:
    """Of products of random numbers, relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, generator=generator).to(dtype) for size in ((7, 83), (101, 83)))
    expected = x.float() @ weight.float().T
    return float((kernels.linear(x, weight, None) - expected).abs().max() / expected.abs().max())
