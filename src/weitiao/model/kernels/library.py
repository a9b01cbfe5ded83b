"""Compiled kernels for CPUs with AVX512-BF16, built on first use by the machine's own g++ and cached.

    kernels/*.cpp --g++, two seconds--> $WEITIAO_HOME/kernels/<key>.so --loaded, compared with torch--> used

They are optional: without the CPU instructions, a compiler or torch's own OpenMP, or if a result differs from torch's,
everything runs in pure torch, and one decision says so. WEITIAO_KERNELS=off disables them.
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
from collections.abc import Callable, Iterator, Sequence
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
from weitiao.core.messages import Message

GENERATION = Path(__file__).parent / "generation.cpp"
"""A library of its own, for all CPUs (generation.py)."""
QUANTIZED = Path(__file__).parent / "quantized.cpp"
"""Another one (quantized.py)."""
FOR_ALL_CPUS = (GENERATION, QUANTIZED)
SOURCES = sorted(x for x in Path(__file__).parent.iterdir() if x.suffix in (".cpp", ".h") and x not in FOR_ALL_CPUS)
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-w")
TIMEOUT = 120  # seconds for the compiler
REGISTER = 16  # numbers that a kernel works on at a time: the last dimension must be a multiple of it
TOLERANCE = 2e-2  # of the largest value: bf16 has 8 bits of precision


class Library:
    """The compiled kernels: `library(name, *arguments)`."""

    reads_values = True
    """Tensors have numbers; False in a trace of shapes."""

    def __init__(self, file: Path) -> None:
        self.loaded = ctypes.CDLL(str(file))

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a kernel.

        Args:
            arguments: tensors are passed as pointers to their data, None as a null pointer, integers as long, floats as
                float, structures by reference.
        """
        self.loaded[name](*[_as_c(x) for x in arguments])


def _as_c(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, ctypes.Structure):
        return ctypes.byref(x)
    if x is None:
        return ctypes.c_void_p()
    return ctypes.c_float(x) if isinstance(x, float) else ctypes.c_long(x)


_compile_lock = threading.Lock()


def compile_in_background() -> None:
    """Start to compile in a thread while other work goes on, where the kernels can be used."""
    if cpu_supported() and not state.disabled_reason and not torch.cuda.is_available():
        threading.Thread(target=library).start()  # not a daemon: if the run ends meanwhile, no half-written file is left


def library() -> Library | None:
    """The kernels; None if there are none, with the reason in `state.disabled_reason`."""
    with _compile_lock:
        return _library()


@cache
def _library() -> Library | None:
    if not cpu_supported():
        return None
    try:
        return compile_and_load(SOURCES)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # ValueError: a malformed CXX
        reason = str(error).strip().splitlines()[-1][:200]
        state.disabled_reason = Message("they could not be compiled or loaded: {reason}", reason=reason)
        return None


@dataclass
class State:
    """Whether this process uses the kernels."""

    disabled_reason: Message = Message("WEITIAO_KERNELS is off" if os.environ.get("WEITIAO_KERNELS") == "off" else "")
    """Empty: they are used where there are any."""
    stand_in: Any = None
    """What is called instead of the kernels, in a trace of shapes."""


state = State()


def enabled() -> bool:
    """Whether this process uses the kernels."""
    return state.stand_in is not None or (not state.disabled_reason and library() is not None)


def kernels_for(*tensors: Tensor, multiple: int = REGISTER) -> Library | None:
    """The kernels, if they can work on these tensors.

    They can if all are on a CPU, in bf16, and have a last dimension that is a multiple of `multiple`.
    """
    unsuitable = any(x.device.type != "cpu" or x.dtype != torch.bfloat16 or x.shape[-1] % multiple for x in tensors)
    if state.stand_in is not None and not unsuitable:
        return state.stand_in
    return None if state.disabled_reason or unsuitable else library()


def kernels_for_logits(logits: Tensor) -> Library | None:
    """The kernels, if they can work on these logits [N, V]; V may be any number."""
    return kernels_for(logits, multiple=1)


@contextmanager
def replaced_kernels(stand_in: Any) -> Iterator[None]:
    """Inside, `stand_in` is called instead of the kernels."""
    previous, state.stand_in = state.stand_in, stand_in
    try:
        yield
    finally:
        state.stand_in = previous


@contextmanager
def kernels_disabled() -> Iterator[None]:
    """Inside, everything runs in pure torch."""
    previous, state.disabled_reason = state.disabled_reason, Message("disabled")
    try:
        yield
    finally:
        state.disabled_reason = previous


def check_kernels(device: torch.device, dtype: torch.dtype, max_relative_error: Callable[[], float]) -> list[Decision]:
    """Compare the kernels with torch, disable them if they differ, and report whether they are used.

    Args:
        max_relative_error: measures the difference to torch, relative to the largest value.

    Returns:
        One decision; none where they cannot be used anyway.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or not cpu_supported():
        return []
    if not state.disabled_reason and library() is not None and (error := max_relative_error()) > TOLERANCE:
        state.disabled_reason = Message("on random numbers they differ from torch by {error:.0e}", error=error)
    if state.disabled_reason:
        return [Decision("model.kernels", "off", Message("pure torch: {reason}", reason=state.disabled_reason))]
    reason = Message("attention, norms, gates, rotations and the LM head use AVX512-BF16 kernels")
    return [Decision("model.kernels", "compiled", reason)]


@cache
def cpu_supported() -> bool:
    """Whether the CPU has the instructions that the kernels use."""
    return "avx512_bf16" in _cpu() and cpu_bf16() != ""


def compile_and_load(files: Sequence[Path]) -> Library:
    """Load a library, after compiling it if it is missing or damaged.

    Raises:
        OSError, SubprocessError: it cannot be compiled; with a sentence.
    """
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise OSError(str(Message("there is no {compiler}", compiler=compiler[0])))
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout
    sources = [x.read_text(encoding="utf-8") for x in files]
    # everything that the compiled code depends on; another machine may share the cache folder
    inputs = [*sources, *compiler, *FLAGS, version, _cpu(), torch.__version__]
    key = hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
    path = home() / "kernels" / f"{key}.so"
    checksum = path.with_suffix(".sha256")
    if not (path.exists() and checksum.exists() and checksum.read_bytes() == file_sha256(path).encode()):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob("tmp*"):  # by a compiler that was killed
            if time.time() - left.stat().st_mtime > TIMEOUT:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new_path, new_checksum = Path(folder) / path.name, Path(folder) / checksum.name
            _compile(compiler, files, new_path)
            new_checksum.write_text(file_sha256(new_path), encoding="utf-8")
            os.replace(new_path, path)
            os.replace(new_checksum, checksum)
    return Library(path)


def _compile(compiler: list[str], files: Sequence[Path], path: Path) -> None:
    openmp, objects = _openmp(), [(x, path.with_name(f"{x.stem}.o")) for x in files if x.suffix == ".cpp"]
    _run(*([*compiler, *FLAGS, "-fopenmp", "-c", str(source), "-o", str(out)] for source, out in objects))
    _run([*compiler, "-shared", *(str(out) for _, out in objects), str(openmp), "-o", str(path)])


def _run(*commands: list[str]) -> None:
    """Run commands at the same time.

    Raises:
        OSError: one failed; with the compiler's own message.
    """
    processes = [subprocess.Popen(x, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for x in commands]
    try:
        outputs = [x.communicate(timeout=TIMEOUT)[1] for x in processes]
    except subprocess.TimeoutExpired:
        raise OSError(str(Message("the compiler took more than {seconds} seconds", seconds=TIMEOUT))) from None
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        if process.returncode:
            errors = [line for line in output.splitlines() if "error" in line]
            raise OSError(errors[0] if errors else "g++ failed")


def _openmp() -> Path:
    """torch's own OpenMP library. A second one would have threads of its own, and both would compete for the cores.

    Raises:
        OSError: torch has none that code compiled by g++ can use.
    """
    folder = Path(torch.__file__).parent
    libraries = [*(folder / "lib").glob("libgomp*"), *(folder.parent / "torch.libs").glob("libgomp*")]
    if not libraries:
        raise OSError(str(Message("this build of torch does not include libgomp")))
    return libraries[0]


@cache
def _cpu() -> str:
    """What distinguishes one CPU model from another for the compiler."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    by_key = {line.partition(":")[0].strip(): line for line in lines}  # of the last core
    return platform.machine() + "".join(by_key.get(x, "") for x in ("model name", "cpu family", "model", "flags"))
