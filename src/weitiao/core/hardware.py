"""What this machine has, and what follows from it, with the reason."""

import importlib
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from weitiao.core.errors import RecipeError

NARROW = 256  # width of a layer below which a pass costs more than its tokens, unless they are many


@dataclass(frozen=True)
class Decision:
    """A value that was chosen for the user, and why. Printed, and written into the Run."""

    key: str
    value: Any
    reason: str


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def precision(wanted: str) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and why.

    Raises:
        RecipeError: fp16 on a CPU.
    """
    where = device().type
    if wanted == "fp16" and where == "cpu":
        raise RecipeError(
            "train.precision: fp16 on a CPU is about 100 times slower than bf16 (no CPU kernels). Use bf16, fp32 or auto."
        )
    if wanted == "fp16":
        return torch.float16, "asked for"
    if wanted == "fp32":
        return torch.float32, "asked for"
    if wanted == "bf16":
        return torch.bfloat16, "asked for"
    if where == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{torch.cuda.get_device_name()} computes in bf16"
        return torch.float16, f"{torch.cuda.get_device_name()} has no bf16; the loss is scaled"
    fast = cpu_bf16()
    if fast:
        return torch.bfloat16, f"this CPU has {fast}"
    return torch.float32, "this CPU has no bf16 instructions (AVX512-BF16 or AMX)"


def use_deterministic_algorithms() -> None:
    """Only kernels that give the same bits each time; an operation that has none raises an error that names it."""
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
    """Before the first product: keep what oneDNN made for the last 64 shapes only, as many as a pass through a model has.

    It and torch keep 0.6 MB of code for each shape of a bf16 product, of up to 1,024 shapes; rows that are packed
    have new shapes in every step. Who has set these variables knows better.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")


def command() -> str:
    """How this program is called from here: `weitiao`, or the way it was called where a shell would not find that."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("weitiao", "__main__.py"):
        return f"{Path(sys.executable).name} -m weitiao"
    return "weitiao" if called.stem != "weitiao" or shutil.which("weitiao") else str(called)


def peak_mb() -> float:
    """The most memory this process has held so far, in MiB (the resident set)."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20  # pyright: ignore[reportAttributeAccessIssue]
    peak = importlib.import_module("resource").getrusage(0).ru_maxrss  # RUSAGE_SELF
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def environment() -> dict[str, Any]:
    """What a reader needs to repeat a run."""
    packages = ["weitiao", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy"]
    packages += [name for name in ("bitsandbytes", "peft") if importlib.util.find_spec(name)]
    where = device()
    return {
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "packages": {name: version(name) for name in packages},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "CPU"


def needs(package: str, extra: str, what: str) -> None:
    """Say in one sentence that an optional package is missing, and how to get it.

    Raises:
        RecipeError: it is missing.
    """
    if importlib.util.find_spec(package) is None:
        raise RecipeError(f"{what} needs the package {package!r}. Install it with: pip install 'weitiao[{extra}]'")
