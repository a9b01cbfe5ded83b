"""The hardware: device, precision, threads, memory, and the environment that a Run records."""

import importlib
import importlib.util
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from weitiao.core.errors import RecipeError
from weitiao.core.finding import IN_RECIPE
from weitiao.core.messages import Message

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
NARROW = 256  # width of a layer below which a pass costs more than its tokens, unless they are many


def device() -> torch.device:
    """The device this process trains on."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def precision(requested: str) -> tuple[torch.dtype, Message]:
    """The dtype to compute in, and why.

    Args:
        requested: `train.precision` of the recipe.

    Raises:
        RecipeError: fp16 on a CPU.
    """
    on_cpu = device().type == "cpu"
    if requested == "fp16" and on_cpu:
        raise RecipeError(
            "train.precision: fp16 on a CPU is about 100 times slower than bf16 (no CPU kernels). Use bf16, fp32 or auto."
        )
    if requested in DTYPES:
        return DTYPES[requested], IN_RECIPE
    if not on_cpu:
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, Message("{device} computes in bf16", device=name)
        return torch.float16, Message("{device} has no bf16, so the loss is scaled", device=name)
    if instructions := cpu_bf16():
        return torch.bfloat16, Message("this CPU has {instructions}", instructions=instructions)
    return torch.float32, Message("this CPU has no bf16 instructions (AVX512-BF16 or AMX)")


def use_deterministic_algorithms() -> None:
    """Use kernels with bit-identical results only; an operation without one raises an error that names it."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def cpu_bf16() -> str:
    """The name of the CPU's bf16 instructions, or ''."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capability.get("amx_bf16"):
        return "AMX"
    if capability.get("avx512_bf16"):
        return "AVX512-BF16"
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return "AMX" if "amx_bf16" in flags else "AVX512-BF16" if "avx512_bf16" in flags else ""


def limit_primitive_cache() -> None:
    """Limit oneDNN's caches to 64 shapes, about as many as one forward pass has. Call it before the first product.

    oneDNN and torch keep 0.6 MB of code for each shape of a bf16 product, for up to 1,024 shapes, and packed rows have
    new shapes in every step. Variables that the user has set stay.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


def peak_mb() -> float:
    """Peak resident memory of this process so far, in MiB."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20  # pyright: ignore[reportAttributeAccessIssue]
    peak = importlib.import_module("resource").getrusage(0).ru_maxrss  # RUSAGE_SELF
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def device_name() -> str:
    """The GPU or the processor, by its own name."""
    where = device()
    return torch.cuda.get_device_name(where) if where.type == "cuda" else cpu_name()


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run."""
    packages = ["weitiao", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy"]
    packages += [name for name in ("bitsandbytes", "peft") if importlib.util.find_spec(name)]
    return {
        "device": device_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "packages": {name: version(name) for name in packages},
    }


def cpu_name() -> str:
    """The processor's name, as it reports it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "CPU"


def needs(package: str, extra: str, what: str) -> None:
    """Check that an optional package is installed.

    Raises:
        RecipeError: it is missing; how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise RecipeError(
            "{what} needs the package {package!r}. Install it with: pip install 'weitiao[{extra}]'",
            what=what,
            package=package,
            extra=extra,
        )
