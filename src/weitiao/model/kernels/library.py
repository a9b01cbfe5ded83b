"""Kernels for CPUs with AVX512-BF16 (kernels/), compiled on first use by the machine's own g++ and kept.

    kernels/*.cpp --g++, two seconds--> $WEITIAO_HOME/kernels/<key>.so --loaded, held to torch on a probe--> used

Optional in every way: without the instructions, a compiler or torch's own OpenMP, or where a probe differs, everything runs
in pure torch, and one line says so. WEITIAO_KERNELS=off leaves them out.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weitiao.core.files import file_sha256, home
from weitiao.core.finding import Decision
from weitiao.core.hardware import cpu_bf16

SOURCES = sorted(x for x in Path(__file__).parent.iterdir() if x.suffix in (".cpp", ".h"))
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-w")
PATIENCE = 120  # seconds for the compiler
WIDE = 16  # numbers that are worked on at once
TOLERANCE = 2e-2  # of the largest value: bf16 has 8 bits


class Library:
    """The compiled kernels: `library(name, *arguments)`."""

    def __init__(self, file: Path) -> None:
        self.loaded = ctypes.CDLL(str(file))

    def __call__(self, name: str, *given: Any) -> None:
        """Tensors go as where they lie, None as a null pointer, whole numbers as long, others as float; what is a structure
        goes by reference."""
        self.loaded[name](*[_as_c(x) for x in given])


def _as_c(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, ctypes.Structure):
        return ctypes.byref(x)
    if x is None:
        return ctypes.c_void_p()
    return ctypes.c_float(x) if isinstance(x, float) else ctypes.c_long(x)


_one_at_a_time = threading.Lock()


def begin() -> None:
    """Compile beside other work, if that is to be done."""
    if instructions() and not state.why_not and not torch.cuda.is_available():
        threading.Thread(target=library).start()  # no daemon: a run that is refused meanwhile leaves nothing half made


def library() -> Library | None:
    """The kernels; None where there are none, and `state.why_not` says why."""
    with _one_at_a_time:
        return _library()


@cache
def _library() -> Library | None:
    if not instructions():
        return None
    try:
        return _loaded()
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: an odd CXX
        state.why_not = f"they could not be compiled or loaded: {str(error).strip().splitlines()[-1][:200]}"
        return None


@dataclass
class State:
    """Whether they are used in this process."""

    why_not: str = "WEITIAO_KERNELS is off" if os.environ.get("WEITIAO_KERNELS") == "off" else ""


state = State()


def in_use() -> bool:
    return not state.why_not and library() is not None


def usable(*given: Tensor, width: int = WIDE) -> Library | None:
    """The kernels, if these tensors are what they take: on a CPU, in bf16, with a last dimension of whole registers."""
    if state.why_not or any(x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.shape[-1] % width for x in given):
        return None
    return library()


def for_words(z: Tensor) -> Library | None:
    """The kernels, if they take such logits [N, V]; any V will do."""
    return usable(z, width=1)


@contextmanager
def left_out() -> Iterator[None]:
    """Inside, everything runs in pure torch."""
    was, state.why_not = state.why_not, "left out"
    try:
        yield
    finally:
        state.why_not = was


def choose(device: torch.device, dtype: torch.dtype, largest_gap: Callable[[], float]) -> list[Decision]:
    """What is said of the kernels, where the machine could use them. Those that prove wrong are left out.

    Args:
        largest_gap: to torch, over the largest value.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or not instructions():
        return []
    if not state.why_not and library() is not None and (gap := largest_gap()) > TOLERANCE:
        state.why_not = f"on a probe they differ from torch by {gap:.0e}"
    if state.why_not:
        return [Decision("model.kernels", "off", f"pure torch: {state.why_not}")]
    return [
        Decision("model.kernels", "compiled", "attention, norms, gates, rotations and the loss head by AVX512-BF16 kernels")
    ]


@cache
def instructions() -> bool:
    """Whether the CPU has those that the kernels are written in."""
    return "avx512_bf16" in _cpu() and cpu_bf16() != ""


def _loaded() -> Library:
    """The library; compiled first if it is not there, or not what was written.

    Raises:
        OSError, SubprocessError: with a sentence.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise OSError(f"there is no {compiler[0]}")
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    texts = [x.read_text(encoding="utf-8") for x in SOURCES]
    all_that_counts = [*texts, *compiler, *FLAGS, version, _cpu(), torch.__version__]
    key = hashlib.sha256("\n".join(all_that_counts).encode()).hexdigest()[:16]
    place = home() / "kernels" / f"{key}.so"
    seal = place.with_suffix(".sha256")
    if not (place.exists() and seal.exists() and seal.read_bytes() == file_sha256(place).encode()):
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob("tmp*"):  # by a compiler that was killed
            if time.time() - left.stat().st_mtime > PATIENCE:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            made, sealed = Path(folder) / place.name, Path(folder) / seal.name
            _compile(compiler, made)
            sealed.write_text(file_sha256(made), encoding="utf-8")
            os.replace(made, place)
            os.replace(sealed, seal)
    return Library(place)


def _compile(compiler: list[str], place: Path) -> None:
    threads, parts = _openmp(), [(x, place.with_name(f"{x.stem}.o")) for x in SOURCES if x.suffix == ".cpp"]
    _run(*([*compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", str(part)] for source, part in parts))
    _run([*compiler, "-shared", *(str(part) for _, part in parts), str(threads), "-o", str(place)])


def _run(*commands: list[str]) -> None:
    """Side by side.

    Raises:
        OSError: with the compiler's own words.
    """
    running = [subprocess.Popen(x, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for x in commands]
    try:
        said = [x.communicate(timeout=PATIENCE)[1] for x in running]
    except subprocess.TimeoutExpired:
        raise OSError(f"the compiler took more than {PATIENCE} seconds") from None
    finally:
        for process in running:
            process.kill()
    for process, words in zip(running, said):
        if process.returncode:
            errors = [line for line in words.splitlines() if "error" in line]
            raise OSError(errors[0] if errors else "g++ failed")


def _openmp() -> Path:
    """torch's own OpenMP: a second one would have threads of its own, and both would wait for a core.

    Raises:
        OSError: torch has none that g++ writes for.
    """
    folder = Path(torch.__file__).parent
    found = [*(folder / "lib").glob("libgomp*"), *(folder.parent / "torch.libs").glob("libgomp*")]
    if not found:
        raise OSError("this torch brings no libgomp")
    return found[0]


@cache
def _cpu() -> str:
    """What tells one processor from another, for the compiler."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    mine = {line.partition(":")[0].strip(): line for line in lines}  # of the last core
    return platform.machine() + "".join(mine.get(x, "") for x in ("model name", "cpu family", "model", "flags"))
