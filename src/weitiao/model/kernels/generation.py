"""Compiled kernels for generation (generation.cpp): products with few rows, and attention to cached keys.

BLAS sums a product of one row in another order than one of thirty, and has no good kernels in between. These read each
weight once for all rows, and give a row the same bits alone and in any batch. They are used where g++ can compile them, on
any CPU; WEITIAO_KERNELS=off disables them.
"""

import ctypes
import subprocess
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from weitiao.core.hardware import cpu_bf16
from weitiao.model.kernels.library import GENERATION, Library, compile_and_load, state

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
_lock = Lock()


class CachedAttention(ctypes.Structure):
    """`Cached` of generation.cpp, field by field in the same order."""

    _fields_ = [
        *((x, ctypes.c_void_p) for x in ("q", "k", "v", "keys", "values", "y")),
        *((x, ctypes.c_long) for x in ("tokens", "heads", "groups", "width", "value_width", "length", "window")),
        *((x, ctypes.c_float) for x in ("scale", "softcap")),
        *((x, ctypes.c_void_p) for x in ("slots", "positions")),
    ]


class GenerationKernels:
    """The compiled kernels, by dtype."""

    def __init__(self, library: Library) -> None:
        pointer, long, real = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
        signatures = {
            "linear": [pointer] * 4 + [long] * 3,
            "attend_cached": [ctypes.POINTER(CachedAttention)],
            "rms_norm": [pointer] * 3 + [long] * 2 + [real] * 2,
            "gated": [pointer] * 3 + [long] * 2,
            "rotate": [pointer] * 4 + [long] * 4,
        }
        self._functions: dict[tuple[str, torch.dtype], Any] = {}
        for dtype, suffix in NAMES.items():
            for name, types in signatures.items():
                function = library.loaded[f"{name}_{suffix}"]
                function.argtypes, function.restype = types, None
                self._functions[name, dtype] = function
        # beyond these torch is faster; a row alone and in a batch then differ by the order of sums (1e-6 in log-probs)
        self.max_rows = {torch.float32: 40, torch.bfloat16: 4 if cpu_bf16() == "AMX" else 40}

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [M, K], weight [N, K] -> [M, N]; contiguous tensors of one dtype."""
        y = x.new_empty(x.shape[0], weight.shape[0])
        bias_data = None if bias is None else bias.data_ptr()
        self._functions["linear", x.dtype](x.data_ptr(), weight.data_ptr(), bias_data, y.data_ptr(), *x.shape, len(weight))
        return y

    def attend(self, dtype: torch.dtype, arguments: CachedAttention) -> None:
        """Write new keys and values, and attend to all cached ones."""
        self._functions["attend_cached", dtype](ctypes.byref(arguments))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        """x [..., D], weight [D], contiguous: x / rms(x) * (weight + offset)."""
        y, width = torch.empty_like(x), x.shape[-1]
        function = self._functions["rms_norm", x.dtype]
        function(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // width, width, eps, offset)
        return y

    def gated(self, a: Tensor, b: Tensor, gelu: bool) -> Tensor:
        """silu(a) b or gelu(a) b, contiguous tensors of one shape."""
        y = torch.empty_like(a)
        self._functions["gated", a.dtype](a.data_ptr(), b.data_ptr(), y.data_ptr(), a.numel(), int(gelu))
        return y

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, H, d] whose heads are adjacent, cos and sin [T, 1, d / 2] contiguous."""
        y = x.new_empty(x.shape)
        function = self._functions["rotate", x.dtype]
        function(x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), *x.shape, x.stride(0))
        return y


def kernels_for_generation(*tensors: Tensor) -> GenerationKernels | None:
    """The kernels, if text is being generated and all tensors are contiguous ones of one dtype on a CPU."""
    first = tensors[0]
    if not torch.is_inference_mode_enabled() or first.dtype not in NAMES or first.device.type != "cpu":
        return None
    same = all(x.dtype == first.dtype and x.is_contiguous() for x in tensors)
    return generation_kernels() if same else None


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
