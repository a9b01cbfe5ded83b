"""LoRA: learn a low-rank change of each weight, W + s B A.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, eq. 3; rsLoRA's scale:
Kalajdzievski 2023, arXiv 2312.03732, eq. 7.

    x [T, D_in] --> A [R, D_in] --> B [D_out, R] --> * s --> + W x        s = alpha / R   (rsLoRA: alpha / sqrt(R))
                    random          zero

B starts at zero, so a fresh LoRA changes nothing. Costs R (D_in + D_out) weights a layer; nothing at inference once
merged. Stored in PEFT's format, and equal there.
"""

import math
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.model.lowrank import LowRankLinear, peft_lora_config
from weitiao.model.surgery import folding, peft_tensors, switching, take_peft, wrap


class LoRA(Method):
    """Learn a low-rank change of each weight; the base stays as it is."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = "2e-4 is what the LoRA paper took for GPT-2 (arXiv 2106.09685, app. D)"

    rank: int = Field(default=16, ge=1)
    """Rank R of the change. More learns more and costs more; 8 to 64 is usual (LoRA paper, sec. 7.2)."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the inputs dropped on the way into A, while training."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that high ranks learn as fast as low ones."""
    rate_of_b: float = Field(default=1.0, gt=0)
    """LoRA+: B learns at this many times the rate; the paper takes about 16 (arXiv 2402.12354, sec. 5)."""
    ranks: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Ranks of their own: {last name, or regular expression for a name's end: rank}, as in PEFT; the first that matches."""
    start: Literal["kaiming", "orthogonal"] = "kaiming"
    """What A starts from: uniform as in PEFT, or orthonormal rows."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too: none, all of the model's, or those of the layers with a change."""

    def rank_of(self, name: str) -> int:
        """A layer's rank."""
        return next((rank for pattern, rank in self.ranks.items() if _matches(pattern, name)), self.rank)

    def scale(self, rank: int) -> float:
        return self.alpha / math.sqrt(rank) if self.rslora else self.alpha / rank

    def attach(self, model: nn.Module) -> Attachment:
        """Replace every target layer by a LowRankLinear."""

        def make(name: str, layer: nn.Module) -> nn.Module:
            rank = self.rank_of(name)
            module = LowRankLinear(layer, rank, self.scale(rank), self.dropout, self.bias == "lora_only")
            if self.start == "orthogonal":
                nn.init.orthogonal_(module.lora_A)
            return module

        made: dict[str, LowRankLinear] = wrap(model, self.target_modules, make)
        for pattern in self.ranks:
            if not any(_matches(pattern, name) for name in made):
                there = ", ".join(sorted({name.rpartition(".")[2] for name in made}))
                raise RecipeError(f"method.ranks: {pattern!r} matches no layer that is changed; names are: {there}.")
        if self.bias == "all":
            for name, weight in model.named_parameters():
                if name.rpartition(".")[2] == "bias":
                    weight.requires_grad_(True)
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}

        def groups(step: int) -> list[dict[str, Any]]:
            fast = {name for name in trainable if name.endswith("lora_B")}
            vectors = sorted(name for name in trainable - fast if name.endswith("bias"))
            slow = sorted(trainable - fast - set(vectors))
            faster = {"names": sorted(fast), "rate": self.rate_of_b}
            return [{"names": slow}, faster, {"names": vectors, "weight_decay": 0.0}]

        return Attachment(
            trainable=trainable,
            groups=groups if self.rate_of_b != 1.0 else None,
            switch=switching(made) if self.bias == "none" else None,
            merge=folding(model, made),
            as_peft=lambda: (self.peft_config(model, made), peft_tensors(model, trainable)),
            from_peft=lambda tensors: take_peft(model, trainable, tensors),
        )

    def peft_config(self, model: nn.Module, made: dict[str, LowRankLinear]) -> dict[str, Any]:
        """What PEFT's adapter_config.json says."""
        more = {"lora_dropout": self.dropout, "use_rslora": self.rslora, "bias": self.bias}
        ranks = {name: rank for name in made if (rank := self.rank_of(name)) != self.rank}
        more["rank_pattern"] = {f"^{re.escape(name)}$": rank for name, rank in ranks.items()}
        return {**peft_lora_config(model, made, self.rank, self.alpha, self.target_modules), **more}

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "LoRA | None":
        """The LoRA that a PEFT adapter_config.json describes.

        Raises:
            ModelError: it asks for a variant that this file does not do.
        """
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            return None
        for key in ("alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias"):
            if config.get(key):
                raise ModelError(f"this PEFT adapter uses {key}, which weitiao's lora does not do.")
        targets = config["target_modules"]
        return cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            rslora=config.get("use_rslora", False),
            bias=config.get("bias", "none"),
            ranks=config.get("rank_pattern") or {},
        )


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})", name) is not None
