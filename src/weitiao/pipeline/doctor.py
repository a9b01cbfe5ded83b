"""What this machine can do: software, processor, memory, kernels, GPU, disk, optional packages. For `weitiao doctor`."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

from weitiao.core import hardware
from weitiao.core.files import home
from weitiao.core.messages import Message, joined
from weitiao.core.version import VERSION
from weitiao.model.kernels import library as kernels

Status = Literal["ok", "warning", "missing"]

EXTRAS = {  # an extra of the wheel -> the modules it installs, and what it is for
    "modelscope": (("modelscope", "modelscope_hub"), Message("base models and data sets from modelscope:<id>")),
    "data": (("py3langid", "selectolax"), Message("cleaners language and html")),
    "docs": (("python_calamine", "pypdfium2"), Message("workbooks (.xlsx) and PDF as data")),
    "peft": (("peft",), Message("method: peft")),
    "qlora": (("bitsandbytes",), Message("method: qlora with 4 bits")),
    "jieba": (("jieba",), Message("whole_word_mask: jieba")),
    "seq2seq": (("sacrebleu",), Message("metrics bleu and chrf")),
    "json": (("llguidance",), Message("answers by a JSON Schema, a regular expression or a choice")),
    "serve": (("fastapi", "uvicorn", "prometheus_client", "httpx"), Message("the server, weitiao serve")),
    "compressed": (("compressed_tensors",), Message("compressed models in plain transformers")),
    "gguf-k": (("libgguf",), Message("K-quants in GGUF files")),
    "llamacpp": (("xllamacpp",), Message("GGUF files, opened and compared by llama.cpp")),
    "onnx": (("onnx", "onnxscript", "onnxruntime"), Message("export to ONNX")),
    "lm-eval": (("lm_eval",), Message("weitiao models inside lm-evaluation-harness")),
    "audio": (("soundfile", "scipy", "rapidfuzz"), Message("speech data; metrics wer and cer")),
}
BUSY = 0.2  # of the CPU, used by other programs
LITTLE_DISK = 5.0  # GB
USABLE = 0.6  # of the free memory, for weights; the rest is for activations and gradients
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    message: Message
    value: Any = None
    """A number, a name or a list, for --json."""

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "status": self.status, "message": str(self.message), "value": self.value}


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and what follows from them."""

    checks: list[Check]
    verdict: Message

    def as_json(self) -> dict[str, Any]:
        return {"verdict": str(self.verdict), "checks": [x.as_json() for x in self.checks]}


def diagnose() -> Diagnosis:
    """Look at this machine. Compiles the CPU kernels where they are not compiled yet, as the first training would."""
    checks = [*_software(), *_processor(), *_gpus(), *_disk(), *_optional()]
    return Diagnosis(checks, _verdict({x.name: x for x in checks}))


def _software() -> Iterator[Check]:
    python = sys.version.split()[0]
    yield Check("python", "ok", Message("Python {version}", version=python), python)
    yield Check("weitiao", "ok", Message("weitiao {version}", version=VERSION), VERSION)
    cuda = torch.version.cuda
    build = Message("CUDA {version}", version=cuda) if cuda else Message("CPU build")
    packages = Message(
        "torch {torch} ({build}), transformers {transformers}",
        torch=torch.__version__,
        build=build,
        transformers=version("transformers"),
    )
    yield Check("torch", "ok", packages, torch.__version__)


def _processor() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    template = "{name}, {cores} cores usable, {threads} threads"
    name, threads = hardware.cpu_name(), torch.get_num_threads()
    yield Check("cpu", "ok", Message(template, name=name, cores=cores, threads=threads), cores)
    used = psutil.cpu_percent(interval=0.3) / 100
    if used > BUSY:
        text = "other programs use {share:.0%} of the CPU: training will be slower"
        yield Check("load", "warning", Message(text, share=used), round(used, 2))
    else:
        yield Check("load", "ok", Message("the CPU is idle ({share:.0%} used)", share=used), round(used, 2))
    memory = psutil.virtual_memory()
    text = "{free:.1f} of {total:.1f} GB memory free"
    message = Message(text, free=memory.available / GB, total=memory.total / GB)
    yield Check(
        "memory", "ok", message, {"free_gb": round(memory.available / GB, 1), "total_gb": round(memory.total / GB, 1)}
    )
    if instructions := hardware.cpu_bf16():
        yield Check("bf16", "ok", Message("this CPU has {instructions}", instructions=instructions), instructions)
    else:
        text = "this CPU has no bf16 instructions (AVX512-BF16 or AMX): fp32 is used, at about half the speed"
        yield Check("bf16", "missing", Message(text))
    yield _kernels()
    yield _openmp()


def _kernels() -> Check:
    if not kernels.cpu_supported():
        return Check("kernels", "missing", Message("CPU kernels: not for this CPU, pure torch is used"))
    if kernels.library() is not None:
        return Check("kernels", "ok", Message("CPU kernels: compiled"))
    reason = kernels.state.disabled_reason
    return Check(
        "kernels", "warning", Message("CPU kernels: off, pure torch is used: {reason}", reason=reason), str(reason)
    )


def _openmp() -> Check:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        if value := os.environ.get(name):
            return Check("openmp", "ok", Message("OpenMP: {name}={value}", name=name, value=value), f"{name}={value}")
    text = "OpenMP: libgomp's own setting; training is very slow when another program uses a core"
    return Check("openmp", "warning", Message(text))


def _gpus() -> Iterator[Check]:
    if not torch.cuda.is_available():
        yield Check("gpu", "missing", Message("no GPU that torch can use"), 0)
        return
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        template = "{name}, {free:.1f} of {total:.1f} GB free"
        message = Message(template, name=torch.cuda.get_device_name(i), free=free / GB, total=total / GB)
        yield Check("gpu", "ok", message, {"free_gb": round(free / GB, 1), "total_gb": round(total / GB, 1)})


def _disk() -> Iterator[Check]:
    folders = {"cache": home(), "here": Path.cwd()}
    for name, folder in folders.items():
        existing = next(x for x in (folder, *folder.parents) if x.exists())
        free = shutil.disk_usage(existing).free / GB
        status: Status = "ok" if free > LITTLE_DISK else "warning"
        yield Check(
            f"disk {name}", status, Message("{free:.0f} GB free in {folder}", free=free, folder=folder), round(free, 1)
        )


def _optional() -> Iterator[Check]:
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [x for x in modules if importlib.util.find_spec(x) is None]
        if not missing:
            yield Check(f"optional {extra}", "ok", Message("{extra}: installed ({purpose})", extra=extra, purpose=purpose))
            continue
        text = "{extra}: not installed ({purpose}). Install it with: pip install 'weitiao[{extra}]'"
        yield Check(f"optional {extra}", "missing", Message(text, extra=extra, purpose=purpose), missing)


def _verdict(checks: dict[str, Check]) -> Message:
    warnings = [x.message for x in checks.values() if x.status == "warning"]
    on_gpu = checks["gpu"].status == "ok"
    free = checks["gpu" if on_gpu else "memory"].value["free_gb"]
    dtype = "bf16" if on_gpu or checks["bf16"].status == "ok" else "fp32"
    billions = USABLE * free / (2 if dtype == "bf16" else 4)  # bytes a weight
    where = Message("on the GPU") if on_gpu else Message("on the CPU")
    text = "ready to train {where} in {dtype}; with LoRA, models of up to about {billions:.1f} billion weights fit"
    ready = Message(text, where=where, dtype=dtype, billions=billions)
    if not warnings:
        return ready
    return Message("{ready}. But: {warnings}", ready=ready, warnings=joined("; ", warnings))
