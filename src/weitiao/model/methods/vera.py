"""VeRA: one pair of frozen random matrices for all layers; each layer trains only how to scale them.

Kopiczko et al. 2023, "VeRA: Vector-based Random Matrix Adaptation", arXiv 2310.11454, eq. 2:

    x --> A [R, D_in] --> * d [R] --> B [D_out, R] --> * b [D_out] --> + W x        A, B random and shared; d, b trained
                                                                                     b starts at zero

Costs R + D_out weights per layer, a tenth of LoRA's. A and B are saved with the result. Stored in PEFT's format, with the
same logits there.
"""

import math
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_replacement import linear_names, make_merge, make_set_enabled, shape_of
from weitiao.model.adapters.peft_format import load_peft_tensors, peft_task, peft_tensors

SHARED = {"vera_A": "base_model.vera_A", "vera_B": "base_model.vera_B"}  # ours -> PEFT's


class VeRA(Method):
    """Train scales of shared random matrices."""

    learning_rate: ClassVar[float] = 2e-2
    learning_rate_reason: ClassVar[Message] = Message(
        "vectors, not matrices: 100 times LoRA's rate; the paper's 4e-3 reached a far higher loss (docs/methods.md)"
    )

    rank: int = Field(default=256, ge=1)
    """Rank R of the shared matrices; they are not trained, so a high rank is cheap."""
    init: float = 0.1
    """Initial value of d."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Replace every target layer by a VeRALinear, and register the shared matrices as buffers of the model."""
        model.requires_grad_(False)
        targets = {name: model.get_submodule(name) for name in linear_names(model, self.target_modules)}
        shapes = [shape_of(layer) for layer in targets.values()]
        device = next(model.parameters()).device
        # as large as the largest layer needs; the others use a part (VeRALinear.factors)
        out_features, in_features = max(rows for rows, _ in shapes), max(columns for _, columns in shapes)
        for name, shape in (("vera_A", (self.rank, in_features)), ("vera_B", (out_features, self.rank))):
            matrix = torch.empty(shape)
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
            model.register_buffer(name, matrix.to(device))
        shared = (model.get_buffer("vera_A"), model.get_buffer("vera_B"))
        layers = {name: VeRALinear(layer, shared, self.rank, self.init) for name, layer in targets.items()}
        for name, layer in layers.items():
            model.set_submodule(name, layer)

        def merge() -> None:
            make_merge(model, layers)()
            del model.vera_A, model.vera_B

        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            matrices = {SHARED[name]: matrix for name, matrix in zip(SHARED, shared)}
            return _config(model, self, layers), {**peft_tensors(model, trainable), **matrices}

        def from_peft(tensors: dict[str, Tensor]) -> None:
            remaining = dict(tensors)
            for matrix, name in zip(shared, SHARED.values()):
                if name not in remaining or remaining[name].shape != matrix.shape:
                    raise ModelError(
                        "the adapter has no {name} of shape {shape} as its config requires (save_projection must be true).",
                        name=name,
                        shape=list(matrix.shape),
                    )
                matrix.copy_(remaining.pop(name))
            load_peft_tensors(model, trainable, remaining)

        return Attachment(
            trainable, set(SHARED), set_enabled=make_set_enabled(layers), merge=merge, as_peft=as_peft, from_peft=from_peft
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "VeRA | None":
        """The VeRA that a PEFT adapter_config.json describes."""
        if config.get("peft_type") != "VERA":
            return None
        targets = config["target_modules"]
        return cls(rank=config["r"], target_modules=targets if isinstance(targets, str) else tuple(targets))


class VeRALinear(nn.Module):
    """A frozen linear layer and its two trained vectors. PEFT's names."""

    def __init__(self, base: nn.Module, shared: tuple[Tensor, Tensor], rank: int, init: float) -> None:
        super().__init__()
        self.base_layer, self.shared, self.on = base, shared, True
        out_features, self.in_features = shape_of(base)
        device = shared[0].device
        self.vera_lambda_d = nn.Parameter(torch.full((rank,), init, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(out_features, device=device))

    @property
    def weight(self) -> Any:
        """The frozen layer's own weight; some families read its dtype (T5)."""
        return self.base_layer.weight

    def factors(self) -> tuple[Tensor, Tensor]:
        """The layer's part of A, [R, D_in], and of B, [D_out, R]."""
        return self.shared[0][:, : self.in_features], self.shared[1][: len(self.vera_lambda_b)]

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if not self.on:
            return out
        a, b = self.factors()
        low = torch.nn.functional.linear(x, a.to(x.dtype)) * self.vera_lambda_d.to(x.dtype)  # [T, R]
        return out + torch.nn.functional.linear(low, b.to(x.dtype)).to(out.dtype) * self.vera_lambda_b.to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with the change merged into its weight."""
        a, b = self.factors()
        change = (self.vera_lambda_b[:, None] * b) @ (self.vera_lambda_d[:, None] * a)  # [D_out, D_in]
        weight: Any = self.base_layer.weight
        change = change.T if isinstance(self.base_layer, Conv1D) else change
        weight.copy_((weight.float() + change).to(weight.dtype))
        return self.base_layer


def _config(model: PreTrainedModel, method: VeRA, layers: dict[str, VeRALinear]) -> dict[str, Any]:
    """PEFT's adapter_config.json."""
    targets = method.target_modules
    if targets == "all-linear":
        targets = sorted({name.rpartition(".")[2] for name in layers})
    return {
        "peft_type": "VERA",
        "task_type": peft_task(model),
        "r": method.rank,
        "d_initial": method.init,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "save_projection": True,
        "fan_in_fan_out": any(isinstance(layer.base_layer, Conv1D) for layer in layers.values()),
        "inference_mode": True,
    }
