"""Task vectors: what another run trained, read from its folder, stored as one file, and subtracted from the base model.

    theta' = theta - lambda * (theta_old - theta)          theta_old: the base with the other run's weights merged

Computed in fp32 and rounded once to the weights' dtype. Ilharco et al. 2022, arXiv 2212.04089, sec. 2.
"""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import RecipeError, WeitiaoError, message_of
from weitiao.core.method import Attachment, Method
from weitiao.core.registry import create
from weitiao.core.run import Run
from weitiao.core.trainable_model import HEAD, identity_of
from weitiao.model.adapters.module_replacement import OriginalWeights


@dataclass(frozen=True)
class TaskVector:
    """A finished run's method, its base model's identity (rounded to bf16), and its trained tensors."""

    method: Method
    base: str
    tensors: dict[str, Tensor]

    @property
    def metadata(self) -> dict[str, str]:
        return {"method": json.dumps(self.method.as_recipe(), sort_keys=True), "base": self.base}

    @property
    def sha256(self) -> str:
        """Of method, base and tensors; the same for the run's folder and for a stored file."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for name, x in sorted(self.tensors.items()):
            digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
            digest.update(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, file: Path) -> None:
        """Store it as one file, atomically."""
        temp = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        save_file(self.tensors, temp, self.metadata)
        os.replace(temp, file)

    def load_into(self, attachment: Attachment, model: nn.Module) -> None:
        """Copy the tensors into the attached method's parameters and buffers.

        Raises:
            RecipeError: their names differ.
        """
        buffers = dict(model.named_buffers())
        own: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if name in attachment.trainable}
        own |= {f"buffer.{name}": buffers[name] for name in attachment.buffers}
        if different := sorted(own.keys() ^ self.tensors.keys()):
            raise RecipeError(
                "method.forget_run: that run's weights do not fit this model: {name} and {others} more differ",
                name=different[0],
                others=len(different) - 1,
            )
        for name, x in self.tensors.items():
            own[name].copy_(x)


def read_task_vector(path: Path) -> TaskVector:
    """From a finished Run's folder, or from a file written by `save`.

    Raises:
        RecipeError: it is neither.
    """
    try:
        if path.is_file():
            tensors, metadata = _read(path)
            settings = json.loads(metadata["method"])
            return TaskVector(create(Method, settings.pop("name"), **settings), metadata["base"], tensors)
        run = Run.open(path)
        if not run.is_finished:
            raise RecipeError(
                "method.forget_run: {path} is not finished ({status}); resume it first", path=path, status=run.status
            )
        tensors, _ = _read(run.best_weights)
        without_heads = {name: x for name, x in tensors.items() if not name.startswith(HEAD)}
        return TaskVector(run.recipe.method, run.read("resolved.json")["base"], without_heads)
    except RecipeError:
        raise
    except (WeitiaoError, OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            "method.forget_run: {path} is not a run whose result can be read: {reason}",
            path=path,
            reason=message_of(error),
        ) from None


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return load_file(file), opened.metadata() or {}


@torch.no_grad()
def subtract(model: PreTrainedModel, task_vector: TaskVector, factor: float) -> OriginalWeights:
    """Subtract `factor` times the task vector from the model's weights, in place.

    Returns:
        All weights as they were before.

    Raises:
        RecipeError: it belongs to another base model, or its method cannot be merged.
    """
    if task_vector.base != identity_of(model, torch.bfloat16):  # in bf16, since the two may be loaded in other dtypes
        raise RecipeError("method.forget_run: that run was trained from another base model; train it again from this one")
    original = OriginalWeights(model, [name for name, _ in model.named_parameters()])
    if not all(weight.is_floating_point() for weight in original.weights):
        raise RecipeError("method: a task vector cannot be subtracted from quantized weights; load them unquantized")
    for weight in original.weights:
        weight.data = weight.data.float()
    devices = [weight.device for weight in original.weights[:1] if weight.is_cuda]
    with torch.random.fork_rng(devices):  # the new method's initial weights are the same with and without forgetting
        attachment = task_vector.method.attach(model)
    if attachment.merge is None:
        raise RecipeError(
            "method.forget_run: method {method} cannot be merged into the base model; lora and full can",
            method=task_vector.method.name,
        )
    task_vector.load_into(attachment, model)
    attachment.merge()
    for weight, copy in zip(original.weights, original.copies):
        base = copy.float()
        weight.data = (base - factor * (weight.data - base)).to(copy.dtype)
    return original


def only_changed(original: OriginalWeights, trained: Collection[nn.Parameter]) -> OriginalWeights:
    """Without the copies of weights that neither the subtraction nor the training changes."""
    trained_ids = {id(x) for x in trained}
    original.keep_only(lambda weight, copy: id(weight) in trained_ids or not torch.equal(weight, copy))
    return original
