"""Low-rank changes of linear layers, W + s B A: the layer, and the settings and code that LoRA's methods share."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_replacement import (
    FEW_BITS,
    is_transposed,
    last_names,
    make_merge,
    make_set_enabled,
    replace_linears,
)
from weitiao.model.adapters.peft_format import load_peft_tensors, peft_task, peft_tensors
from weitiao.model.layers.lora_autograd import LoRAWeights, Unpack, lora_linear
from weitiao.model.layers.saved_tensors import to_autocast_dtype


class LowRankLinear(nn.Module):
    """A frozen linear layer with a trained low-rank change. PEFT's parameter names, so that files work both ways."""

    base_layer: Any

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, train_bias: bool = False) -> None:
        super().__init__()
        self.base_layer = base
        weight = self.weight()
        out_features, in_features = weight.shape
        if rank > max(out_features, in_features):
            raise RecipeError(
                "method.rank: {rank} is larger than a layer ({in_features} to {out_features}); use a lower rank",
                rank=rank,
                in_features=in_features,
                out_features=out_features,
            )
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32, device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32, device=weight.device))
        self.scale = scale
        self.on = True
        """False: the layer is its base layer."""
        self.plain = False
        """Use torch's own functions only (the reference implementation)."""
        self.dropout = nn.Dropout(dropout)
        bias = self.bias()
        if train_bias and bias is not None:
            bias.requires_grad_(True)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def weight(self) -> Tensor:
        """[D_out, D_in], whatever the base layer's own layout."""
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight

    def stored_weight(self) -> tuple[Tensor, Unpack]:
        """The base layer's weight as it is stored, and the function that unpacks it to a dtype."""
        if isinstance(self.base_layer, FEW_BITS):
            return self.base_layer.packed, self.base_layer.unpack
        return self.weight(), Tensor.to

    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, D_in] and B [D_out, R]: the change of the weight is s B A."""
        return self.lora_A, self.lora_B

    @property
    def can_fuse(self) -> bool:
        """Whether the layer runs as our autograd function now, which layers with the same input can share."""
        own_forward = type(self).forward is LowRankLinear.forward
        return own_forward and not (self._forward_hooks or self._forward_pre_hooks) and self.on and not self._needs_torch()

    def _needs_torch(self) -> bool:
        return self.plain or (self.training and self.dropout.p > 0)

    def lora_weights(self) -> LoRAWeights:
        """The layer as our autograd function takes it."""
        weight, unpack = self.stored_weight()
        return LoRAWeights(weight, self.bias(), *self.factors(), self.scale, unpack)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        x = to_autocast_dtype(x)
        if not self._needs_torch():
            return lora_linear(x, [self.lora_weights()])[0]
        a, b = self.factors()
        low = nn.functional.linear(self.dropout(x), a.to(x.dtype))
        return self.base_layer(x) + nn.functional.linear(low, b.to(x.dtype)) * self.scale

    @property
    def own_parameters(self) -> tuple[str, ...]:
        """Names of its parameters, without the base layer's."""
        return tuple(name for name, _ in self.named_parameters() if not name.startswith("base_layer."))

    def forward_from(self, x: Tensor, base_output: Tensor) -> Tensor:
        """The layer's output for x, from its base layer's output."""
        a, b = (factor.to(base_output.dtype) for factor in self.factors())
        low = x.flatten(0, -2).to(base_output.dtype) @ a.T  # [T, R]
        return torch.addmm(base_output.flatten(0, -2), low, b.T, alpha=self.scale).view(base_output.shape)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with the change added to its weight (in fp32, rounded once)."""
        if isinstance(self.base_layer, FEW_BITS):  # rounding again would lose the change
            self.base_layer = self.base_layer.plain()
        a, b = self.factors()
        change, weight = (b @ a) * self.scale, self.weight()
        weight.copy_((weight.float() + change).to(weight.dtype))
        return self.base_layer

    def orthogonality_penalty(self) -> Tensor:
        """How far B's columns and A's rows are from orthonormal: |B^T B - I|^2 + |A A^T - I|^2."""
        a, b, identity = self.lora_A, self.lora_B, torch.eye(len(self.lora_A), device=self.lora_A.device)
        return (b.T @ b - identity).square().sum() + (a @ a.T - identity).square().sum()


def fused_forward(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The outputs of several layers for the same x; low-rank layers run as one autograd function."""
    fused = [layer for layer in layers if isinstance(layer, LowRankLinear) and layer.can_fuse]
    outputs = iter(lora_linear(to_autocast_dtype(x), [layer.lora_weights() for layer in fused]) if fused else ())
    return tuple(next(outputs) if layer in fused else layer(x) for layer in layers)


def qkv(x: Tensor, rows: Tensor | None, query: nn.Module, key: nn.Module, value: nn.Module) -> tuple[Tensor, ...]:
    """Queries of all tokens, or of those at `rows`; keys and values of all tokens."""
    if rows is None:
        return fused_forward(x, query, key, value)
    return query(x[rows]), *fused_forward(x, key, value)


Layer = TypeVar("Layer", bound=LowRankLinear)


class LowRank(Method):
    """The settings of methods that train a change s B A of each frozen weight."""

    rank: int = Field(default=16, ge=1)
    """Rank R of the change: a higher rank fits more and costs more; 8 to 64 is usual (LoRA paper, sec. 7.2)."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A, while training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones (rsLoRA)."""
    loraplus_lr_ratio: float = Field(default=1.0, gt=0)
    """LoRA+: learning rate of B, relative to A's; the paper uses about 16 (arXiv 2402.12354, sec. 5)."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Ranks of single layers, as in PEFT: {last name, or regular expression for a name's end: rank}; the first match."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too: none, all of the model's, or those of the changed layers."""

    def load_options(self) -> dict[str, Any]:
        """Trained biases are the base's own, so they are stored in fp32: bf16 would round small steps away."""
        return {} if self.bias == "none" else {"dtype": torch.float32}

    def rank_of(self, name: str) -> int:
        """The rank of a layer's change."""
        return next((rank for pattern, rank in self.rank_pattern.items() if _matches(pattern, name)), self.rank)

    def scale(self, rank: int) -> float:
        return self.alpha / math.sqrt(rank) if self.use_rslora else self.alpha / rank

    def attach_layers(
        self,
        model: PreTrainedModel,
        layer_type: type[Layer],
        initialize: Callable[[str, Layer], object] = lambda name, layer: None,
    ) -> tuple[Attachment, dict[str, Layer]]:
        """Replace every target layer by a low-rank layer.

        Args:
            initialize: (name, layer) -> sets its initial weights.

        Returns:
            The attachment, and the layers by name.
        """

        def make(name: str, base: nn.Module) -> Layer:
            rank = self.rank_of(name)
            layer = layer_type(base, rank, self.scale(rank), self.dropout, self.bias == "lora_only")
            initialize(name, layer)
            return layer

        layers = replace_linears(model, self.target_modules, make)
        for pattern in self.rank_pattern:
            if not any(_matches(pattern, name) for name in layers):
                raise RecipeError(
                    "method.rank_pattern: {pattern!r} matches none of the changed layers; names are: {names}",
                    pattern=pattern,
                    names=last_names(layers),
                )
        if self.bias == "all":
            for name, weight in model.named_parameters():
                if name.rpartition(".")[2] == "bias":
                    weight.requires_grad_(True)
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        attachment = Attachment(
            trainable=trainable,
            groups=(lambda step: self._groups(trainable)) if self.loraplus_lr_ratio != 1.0 else None,
            set_enabled=make_set_enabled(layers) if self.bias == "none" else None,
            merge=make_merge(model, layers),
            as_peft=lambda: (self.peft_config(model, layers), peft_tensors(model, trainable)),
            from_peft=lambda tensors: load_peft_tensors(model, trainable, tensors),
        )
        return attachment, layers

    def _groups(self, trainable: set[str]) -> list[dict[str, Any]]:
        """LoRA+: B's have a learning rate of their own, biases no weight decay."""
        b_names = {name for name in trainable if name.endswith("lora_B")}
        biases = {name for name in trainable - b_names if name.endswith("bias")}
        return [
            {"names": sorted(trainable - b_names - biases)},
            {"names": sorted(b_names), "rate": self.loraplus_lr_ratio},
            {"names": sorted(biases), "weight_decay": 0.0},
        ]

    def peft_config(self, model: PreTrainedModel, layers: Mapping[str, LowRankLinear]) -> dict[str, Any]:
        """PEFT's adapter_config.json."""
        ranks = {name: self.rank_of(name) for name in layers}
        return {
            **peft_lora_config(model, layers, self.rank, self.alpha, self.target_modules),
            "lora_dropout": self.dropout,
            "use_rslora": self.use_rslora,
            "bias": self.bias,
            "rank_pattern": {f"^{re.escape(name)}$": rank for name, rank in ranks.items() if rank != self.rank},
        }


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})", name) is not None


def peft_lora_config(
    model: PreTrainedModel,
    layers: Mapping[str, LowRankLinear],
    rank: int,
    alpha: float,
    target_modules: str | tuple[str, ...],
) -> dict[str, Any]:
    """PEFT's adapter_config.json of low-rank changes, with PEFT's defaults for all that is not given."""
    if target_modules == "all-linear":
        target_modules = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    return {
        "peft_type": "LORA",
        "task_type": peft_task(model),
        "base_model_name_or_path": getattr(model.config, "_name_or_path", None),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": target_modules if isinstance(target_modules, str) else list(target_modules),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(layer.base_layer) for layer in layers.values()),
        "inference_mode": True,
        "init_lora_weights": True,
    }
