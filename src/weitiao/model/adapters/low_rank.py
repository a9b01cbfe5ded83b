"""A frozen linear layer with a low-rank change s B A beside it, and what methods that learn one have in common."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weitiao.core.errors import RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.peft_format import peft_task, peft_tensors, take_peft
from weitiao.model.adapters.surgery import enabling, folding, is_transposed, wrap
from weitiao.model.layers.lora_autograd import LoRAWeights, Unpack, lora_linear
from weitiao.model.layers.quantized import QuantizedLinear
from weitiao.model.layers.saved_tensors import to_autocast_dtype


class LowRankLinear(nn.Module):
    """Stands in the place of a linear layer. PEFT's names, so that files travel both ways."""

    def __init__(self, base: nn.Module, rank: int, scale: float, dropout: float = 0.0, train_bias: bool = False) -> None:
        super().__init__()
        self.base_layer = base
        weight = self.weight()
        out_features, in_features = weight.shape
        if rank > max(out_features, in_features):
            width = f"{in_features} to {out_features}"
            raise RecipeError(f"rank {rank} is above the width of a layer ({width}); take a lower one.")
        device = weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32, device=device))
        self.scale, self.on, self.plain = scale, True, False  # plain: by torch's own functions
        self.dropout = nn.Dropout(dropout)
        if train_bias and self.bias() is not None:
            self.bias().requires_grad_(True)  # pyright: ignore[reportOptionalMemberAccess]
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def weight(self) -> Tensor:
        """[D_out, D_in], whatever the base layer's own layout."""
        weight = self.base_layer.weight
        return weight.T if isinstance(self.base_layer, Conv1D) else weight  # pyright: ignore

    def stored(self) -> tuple[Tensor, Unpack]:
        """The base layer's weight as it is stored, and how it is unpacked."""
        if isinstance(self.base_layer, QuantizedLinear):
            return self.base_layer.packed, self.base_layer.unpack
        return self.weight(), Tensor.to

    def bias(self) -> nn.Parameter | None:
        return self.base_layer.bias  # pyright: ignore

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [R, D_in] and B [D_out, R]: the change of the weight is s B A."""
        return self.lora_A, self.lora_B

    @property
    def fused(self) -> bool:
        """It runs as one autograd node now, which neighbours may join."""
        own = type(self).forward is LowRankLinear.forward and not self._forward_hooks and not self._forward_pre_hooks
        return own and self.on and not self.plain and not (self.training and self.dropout.p > 0)

    def changed(self) -> LoRAWeights:
        """As that node takes it."""
        weight, unpack = self.stored()
        return LoRAWeights(weight, self.bias(), *self.factors(), self.scale, unpack)

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        x = to_autocast_dtype(x)
        if self.plain or (self.training and self.dropout.p > 0):
            a, b = self.factors()
            low = torch.nn.functional.linear(self.dropout(x), a.to(x.dtype))
            return self.base_layer(x) + torch.nn.functional.linear(low, b.to(x.dtype)) * self.scale
        return lora_linear(x, [self.changed()])[0]

    @property
    def own(self) -> tuple[str, ...]:
        """Names of its parameters, without the base layer's."""
        return tuple(name for name, _ in self.named_parameters() if not name.startswith("base_layer."))

    def forward_from(self, x: Tensor, plain: Tensor) -> Tensor:
        """What the layer gives for x where its base layer gives `plain`."""
        a, b = (half.to(plain.dtype) for half in self.factors())
        low = x.flatten(0, -2).to(plain.dtype) @ a.T  # [T, R]
        return torch.addmm(plain.flatten(0, -2), low, b.T, alpha=self.scale).view(plain.shape)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The base layer with the change added to its weight (in fp32, then rounded once)."""
        a, b = self.factors()
        change, weight = (b @ a) * self.scale, self.weight()
        weight.copy_((weight.float() + change).to(weight.dtype))
        return self.base_layer

    def orthogonality_penalty(self) -> Tensor:
        """How far B's columns and A's rows are from orthonormal: |B^T B - 1|^2 + |A A^T - 1|^2."""
        a, b, one = self.lora_A, self.lora_B, torch.eye(len(self.lora_A), device=self.lora_A.device)
        return (b.T @ b - one).square().sum() + (a @ a.T - one).square().sum()


def fused_forward(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What layers give for the same x: those with a low-rank change as one autograd node."""
    joined = [layer for layer in layers if isinstance(layer, LowRankLinear) and layer.fused]
    made = iter(lora_linear(to_autocast_dtype(x), [layer.changed() for layer in joined]) if joined else ())
    return tuple(next(made) if layer in joined else layer(x) for layer in layers)


def asked(x: Tensor, rows: Tensor | None, query: nn.Module, *known: nn.Module) -> tuple[Tensor, ...]:
    """Queries, of some rows where only these ask; keys and values of all."""
    return fused_forward(x, query, *known) if rows is None else (query(x[rows]), *fused_forward(x, *known))


class LowRank(Method):
    """What a method that learns s B A beside each frozen weight is asked for."""

    rank: int = Field(default=16, ge=1)
    """Rank R of the change. More learns more and costs more; 8 to 64 is usual (LoRA paper, sec. 7.2)."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the inputs dropped on the way into A, while training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones."""
    loraplus_lr_ratio: float = Field(default=1.0, gt=0)
    """LoRA+: B learns at this many times the rate; the paper takes about 16 (arXiv 2402.12354, sec. 5)."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Ranks of their own: {last name, or regular expression for a name's end: rank}, as in PEFT; the first that matches."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too: none, all of the model's, or those of the layers with a change."""

    def load_options(self) -> dict[str, Any]:
        """Trained weights, here biases of the base, are kept in fp32: bf16 would round small steps away."""
        return {} if self.bias == "none" else {"dtype": torch.float32}

    def rank_of(self, name: str) -> int:
        """A layer's rank."""
        return next((rank for pattern, rank in self.rank_pattern.items() if _matches(pattern, name)), self.rank)

    def scale(self, rank: int) -> float:
        return self.alpha / math.sqrt(rank) if self.use_rslora else self.alpha / rank

    def put_beside(
        self,
        model: nn.Module,
        kind: type[LowRankLinear] = LowRankLinear,
        begin: Callable[[str, Any], Any] = lambda name, module: None,
    ) -> tuple[Attachment, dict[str, LowRankLinear]]:
        """Replace every target layer by a module of a kind; `begin(name, module)` may change what it starts from."""

        def make(name: str, layer: nn.Module) -> nn.Module:
            rank = self.rank_of(name)
            module = kind(layer, rank, self.scale(rank), self.dropout, self.bias == "lora_only")
            begin(name, module)
            return module

        made: dict[str, LowRankLinear] = wrap(model, self.target_modules, make)
        for pattern in self.rank_pattern:
            if not any(_matches(pattern, name) for name in made):
                there = ", ".join(sorted({name.rpartition(".")[2] for name in made}))
                raise RecipeError(f"method.ranks: {pattern!r} matches no layer that is changed; names are: {there}.")
        if self.bias == "all":
            for name, weight in model.named_parameters():
                if name.rpartition(".")[2] == "bias":
                    weight.requires_grad_(True)
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        attachment = Attachment(
            trainable=trainable,
            groups=(lambda step: self._groups(trainable)) if self.loraplus_lr_ratio != 1.0 else None,
            set_enabled=enabling(made) if self.bias == "none" else None,
            merge=folding(model, made),
            as_peft=lambda: (self.peft_config(model, made), peft_tensors(model, trainable)),
            from_peft=lambda tensors: take_peft(model, trainable, tensors),
        )
        return attachment, made

    def _groups(self, trainable: set[str]) -> list[dict[str, Any]]:
        fast = {name for name in trainable if name.endswith("lora_B")}
        vectors = sorted(name for name in trainable - fast if name.endswith("bias"))
        slow = sorted(trainable - fast - set(vectors))
        faster = {"names": sorted(fast), "rate": self.loraplus_lr_ratio}
        return [{"names": slow}, faster, {"names": vectors, "weight_decay": 0.0}]

    def peft_config(self, model: nn.Module, made: dict[str, LowRankLinear]) -> dict[str, Any]:
        """What PEFT's adapter_config.json says."""
        more = {"lora_dropout": self.dropout, "use_rslora": self.use_rslora, "bias": self.bias}
        ranks = {name: rank for name in made if (rank := self.rank_of(name)) != self.rank}
        more["rank_pattern"] = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
        return {**peft_lora_config(model, made, self.rank, self.alpha, self.target_modules), **more}


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})", name) is not None


def peft_lora_config(
    model: nn.Module, made: Mapping[str, LowRankLinear], rank: int, alpha: float, targets: str | tuple[str, ...]
) -> dict[str, Any]:
    """What PEFT's adapter_config.json says of low-rank changes."""
    if targets == "all-linear":
        targets = tuple(sorted({name.rpartition(".")[2] for name in made}))
    return {
        "peft_type": "LORA",
        "task_type": peft_task(model),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(module.base_layer) for module in made.values()),
        "inference_mode": True,
        "init_lora_weights": True,
    }
