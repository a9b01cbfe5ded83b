"""A tiny model with a method attached, what it outputs, and what plain transformers outputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any
from unittest.mock import patch

import pytest
import torch

from support.models import make_model
from support.parts import METHOD_SETTINGS, VARIANTS, method_settings
from weitiao.core.batch import Batch
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import create, find
from weitiao.core.trainable_model import TrainableModel, reference_logits
from weitiao.model.adapters.module_replacement import dequantize_layers
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.backbone import choose
from weitiao.model.generation.choose import make_engine
from weitiao.model.layers.attention import NAME

CLASSIFICATION: Any = create(Objective, "classification", classes=("a", "b", "c"), multi_label=False)


@dataclass
class StopIds:
    """As much of a processor as generation needs."""

    stop_ids: tuple[int, ...] = (2,)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(x) for x in ids)


def method_class(method: str) -> type[Method]:
    """The class of a method, or of the method that a variant is of."""
    return find(Method, VARIANTS.get(method, (method, {}))[0])


def base_model(method: str, family: str = "llama") -> torch.nn.Module:
    """What a method starts from: a plain model of the family, with its weights rounded as the method stores them."""
    model, (name, settings) = make_model(family), VARIANTS.get(method, (method, {}))
    if method_class(method).rounds_base:
        create(Method, name, **settings).prepare(model, torch.device("cpu"))
        dequantize_layers(model)
    return model


DIFFERENCES: dict[str, list[float]] = {}


@contextmanager
def probed_once(family: str) -> Iterator[None]:
    """A family's tiny model always has the same weights: each probe of `choose_backbone` is computed only once."""
    differences, calls, compute = DIFFERENCES.setdefault(family, []), count(), choose._difference

    def difference(*args: Any) -> float:
        if (i := next(calls)) == len(differences):
            differences.append(compute(*args))
        return differences[i]

    with patch.object(choose, "_difference", difference):
        yield


def attached(method: str, family: str = "llama", base: torch.nn.Module | None = None, **settings: Any) -> TrainableModel:
    """A tiny model of a family (or `base`) with a method or a variant of one attached; the same at each call."""
    model = base or make_model(family)
    model.set_attn_implementation(NAME)
    with nullcontext() if base is not None else probed_once(family):
        backbone, _ = choose.choose_backbone(model, torch.float32)
    architecture = architecture_of(model.config)
    head = choose.make_lm_head(model)
    method, variant = VARIANTS.get(method, (method, {}))
    settings, component = {**variant, **settings}, find(Method, method)
    if method in ("peft", "f_learning"):
        settings = {**method_settings(method, family), **settings}
    torch.manual_seed(1)
    try:
        attachment = component(**settings).attach(model)
    except RecipeError as error:
        if method == "peft":
            pytest.skip(str(error))
        if method not in METHOD_SETTINGS:
            raise
        assert all(key in str(error) for key in METHOD_SETTINGS[method]), "the error names what to write"
        attachment = component(**settings, **METHOD_SETTINGS[method]).attach(model)
    heads = CLASSIFICATION.heads(32) if architecture.kind == "encoder" else {}
    for layer in heads.values():
        layer.weight.data.mul_(50)  # so that gradients are large enough to move fp32 weights
    return TrainableModel(
        model, attachment, StopIds(), architecture, backbone, head, torch.nn.ModuleDict(heads), _make_engine=make_engine
    )


def outputs(model: TrainableModel, batch: Batch) -> torch.Tensor:
    """Of each token: logits [T, V] of a decoder, hidden states [T, D] of an encoder."""
    return model.hidden(batch) if model.architecture.kind == "encoder" else model.logits(batch)


def reference_outputs(model: TrainableModel, ids: list[int]) -> torch.Tensor:
    """The same for one row alone, by transformers' own forward pass."""
    if model.architecture.kind != "encoder":
        return reference_logits(model, ids)
    input_ids = torch.tensor([model.attachment.prepend_virtual_tokens(ids)])
    return model.model(input_ids=input_ids).last_hidden_state[0, -len(ids) :]


def loss_of(model: TrainableModel, batch: Batch) -> torch.Tensor:
    """The loss of a decoder's labels, or of a classification of each row by an encoder."""
    if model.architecture.kind != "encoder":
        return -model.logprobs(batch).sum()
    targets = {"class_id": torch.arange(len(batch.lengths)) % 3}
    return CLASSIFICATION.loss(model, replace(batch, targets=targets)).totals["classification"]


def perturb(model: TrainableModel, scale: float = 0.05) -> None:
    """Add noise to every trained weight."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn_like(weight) * scale)


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest absolute value."""
    return float((a - b).abs().max() / b.abs().max())
