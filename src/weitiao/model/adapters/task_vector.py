"""What another Run learnt, taken along: read, named by a hash, kept as one file, subtracted from the base.

    theta' = theta - rate * (theta_old - theta)          theta_old: the base with the other Run's weights merged

The sum is made in fp32 and rounded once to the dtype of the weights.
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

from weitiao.core.errors import RecipeError, WeitiaoError
from weitiao.core.method import Attachment, Method
from weitiao.core.registry import create
from weitiao.core.run import Run
from weitiao.core.trainable_model import HEAD, identity_of
from weitiao.model.adapters.surgery import Originals


@dataclass(frozen=True)
class TaskVector:
    """A finished Run's method, its base's identity (rounded to bf16), and its result."""

    method: Method
    base: str
    tensors: dict[str, Tensor]

    @property
    def about(self) -> dict[str, str]:
        return {"method": json.dumps(self.method.as_recipe(), sort_keys=True), "base": self.base}

    @property
    def sha256(self) -> str:
        """Of everything in it, wherever it lies."""
        digest = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode())
        for name, x in sorted(self.tensors.items()):
            digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
            digest.update(x.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, file: Path) -> None:
        """As one file, whole or not at all."""
        temp = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        save_file(self.tensors, temp, self.about)
        os.replace(temp, file)

    def put_into(self, attachment: Attachment, model: nn.Module) -> None:
        """Give the attached method what was learnt.

        Raises:
            RecipeError: it is not that method's.
        """
        buffers = dict(model.named_buffers())
        here: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if n in attachment.trainable}
        here |= {f"buffer.{name}": buffers[name] for name in attachment.buffers}
        if odd := sorted(here.keys() ^ self.tensors.keys()):
            raise RecipeError(f"old: what it learnt does not fit this model: {odd[0]} and {len(odd) - 1} more differ.")
        for name, x in self.tensors.items():
            here[name].copy_(x)


def read_task_vector(place: Path) -> TaskVector:
    """From a finished Run's folder, or from a file that `save` wrote.

    Raises:
        RecipeError: it is neither.
    """
    try:
        if place.is_file():
            tensors, about = _read(place)
            plain = json.loads(about["method"])
            return TaskVector(create(Method, plain.pop("name"), **plain), about["base"], tensors)
        run = Run.open(place)
        if not run.is_finished:
            raise RecipeError(f"old: {place} is not finished ({run.status}); train it to its end first.")
        tensors, _ = _read(place / "best" / "weights.safetensors")
        in_base = {name: x for name, x in tensors.items() if not name.startswith(HEAD)}
        return TaskVector(run.recipe.method, run.read("resolved.json")["base"], in_base)
    except RecipeError:
        raise
    except (WeitiaoError, OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"old: {place} is no Run whose result can be read ({error}).") from None


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, "pt") as opened:
        return load_file(file), opened.metadata() or {}


@torch.no_grad()
def subtract(model: nn.Module, learnt: TaskVector, rate: float) -> Originals:
    """Take `rate` times what was learnt away from the weights, in place.

    Returns:
        All weights as they were before.

    Raises:
        RecipeError: it was learnt from another base, or by a method that cannot be merged.
    """
    if learnt.base != identity_of(model, torch.bfloat16):  # whatever precision either was loaded in
        raise RecipeError("old: that run learnt from another base model; train it anew from this one.")
    base = Originals(model, [name for name, _ in model.named_parameters()])
    if not all(weight.is_floating_point() for weight in base.weights):
        raise RecipeError("method: nothing can be taken away from packed (four-bit, eight-bit) weights; load them whole.")
    for weight in base.weights:
        weight.data = weight.data.float()
    devices = [weight.device for weight in base.weights[:1] if weight.is_cuda]
    with torch.random.fork_rng(devices):  # the learning begins as it would without the forgetting
        attachment = learnt.method.attach(model)
    if attachment.merge is None:
        raise RecipeError(f"old: {learnt.method.name} cannot be merged into the base; lora and full can.")
    learnt.put_into(attachment, model)
    attachment.merge()
    for weight, was in zip(base.weights, base.others):
        whole = was.float()
        weight.data = (whole - rate * (weight.data - whole)).to(was.dtype)
    return base


def only_changed(base: Originals, trained: Collection[nn.Parameter]) -> Originals:
    """Without the copies of weights that neither the forgetting nor the training moves."""
    mine = {id(x) for x in trained}
    pairs = [(w, x) for w, x in zip(base.weights, base.others) if id(w) in mine or not torch.equal(w, x)]
    base.weights, base.others = [w for w, _ in pairs], [x for _, x in pairs]
    return base
