"""What is said of a GGUF file that was written, and how it is read back where llama.cpp is not installed."""

import importlib.util
from pathlib import Path

import torch
from gguf import GGUFReader, dequantize
from transformers import AutoConfig

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.tensor_files import check_gguf
from weitiao.deploy.export.format import Written, megabytes
from weitiao.deploy.export.gguf.families import family_of
from weitiao.deploy.export.gguf.quantization import QuantizationPlan
from weitiao.deploy.export.gguf.write import StoredWeights, named_tensors

MAX_ERROR = 0.15  # relative, of one tensor: 4 bits have 0.07 to 0.09


def size_note(file: Path, plan: QuantizationPlan) -> Message:
    """Size, effective bits, the types that were written, and what fell back."""
    types = ", ".join(f"{n} {name}" for name, n in plan.types.most_common())
    facts = {"file": file, "megabytes": megabytes(file), "bits": plan.bits, "types": types}
    if not plan.fallbacks:
        return Message("{file}: {megabytes:,.1f} MB, {bits:.2f} bits a weight; tensors: {types}", **facts)
    return Message(
        "{file}: {megabytes:,.1f} MB, {bits:.2f} bits a weight; tensors: {types}; {n} fell back, since their width is no "
        "multiple of the type's block",
        n=plan.fallbacks,
        **facts,
    )


def gguf_form(file: Path, folder: Path, written: Written) -> None:
    """Have the file opened by llama.cpp, or compare its tensors and say why that is less.

    Raises:
        ModelError: a tensor is not what was merged.
    """
    if importlib.util.find_spec("xllamacpp") is not None:
        written.form = file
        return
    error, name = largest_error(file, folder)
    written.checks.append(Message("tensors read back: largest relative error {error:.1e} ({name})", error=error, name=name))
    written.obstacle = Message(
        "llama.cpp did not open it, so template, tokens and answers are not proven: pip install 'weitiao[llamacpp]', then "
        "`weitiao verify`"
    )


def largest_error(file: Path, folder: Path) -> tuple[float, str]:
    """(relative error, name) of the tensor that differs most from the model in a folder.

    Raises:
        ModelError: more than quantization explains, or a tensor is missing.
    """
    check_gguf(file)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    stored = {x.name: x for x in named_tensors(StoredWeights.open(folder), config, family_of(config))}
    largest, worst, names = 0.0, "", set()
    for tensor in GGUFReader(file).tensors:
        names.add(tensor.name)
        got = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).reshape(stored[tensor.name].shape)
        expected = stored[tensor.name].read()
        error = float((got - expected).norm() / expected.norm().clamp(min=1e-30))
        if error >= largest:
            largest, worst = error, tensor.name
    if names != stored.keys() or not largest <= MAX_ERROR:
        raise ModelError(
            "{file}: {name} is not the model's (relative error {error:.1e}): do not use it.",
            file=file,
            name=worst,
            error=largest,
        )
    return largest, worst
