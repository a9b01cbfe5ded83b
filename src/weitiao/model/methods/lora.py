"""LoRA: learn a low-rank change of each weight, W + s B A.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, eq. 3; rsLoRA's scale:
Kalajdzievski 2023, arXiv 2312.03732, eq. 7.

    x [T, D_in] --> A [R, D_in] --> B [D_out, R] --> * s --> + W x        s = alpha / R   (rsLoRA: alpha / sqrt(R))
                    random          zero

B starts at zero, so a fresh LoRA changes nothing. Costs R (D_in + D_out) weights a layer; nothing at inference once
merged. Stored in PEFT's format, and equal there.

`start: pissa` (Meng et al. 2024, "PiSSA", arXiv 2404.02948, eq. 2 to 4) learns the R greatest singular triplets of W
itself, and what is left of W stays frozen:

    W = U S V^T        s B0 A0 = U[:R] S[:R] V[:R]^T        y = (W - s B0 A0) x + s B A x,    A, B from A0, B0

We leave W alone and keep A0 and B0 with the result, for the same is y = W x + s (B [A - A0] + [B - B0] A0) x: at first
W x to the bit, without it again W, and a result that any machine can open, whatever its SVD says. Costs a product of rank
2 R; in PEFT's format it is a plain LoRA of rank 2 R.
"""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.method import Attachment
from weitiao.model.adapters.low_rank import LowRank, LowRankLinear
from weitiao.model.adapters.surgery import PREFIX

OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # PEFT's starts that also change the base weights


class LoRA(LowRank):
    """Learn a low-rank change of each weight; the base stays as it is."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = "2e-4 is what the LoRA paper took for GPT-2 (arXiv 2106.09685, app. D)"

    init: Literal["kaiming", "orthogonal", "pissa"] = "kaiming"
    """What A starts from: uniform as in PEFT, orthonormal rows, or with B the weight's greatest singular triplets."""
    niter: Literal["exact"] | Annotated[int, Field(ge=1)] = "exact"
    """PiSSA's decomposition: exact, or so many rounds of a randomised one, faster for wide layers (the paper takes 16)."""

    def attach(self, model: nn.Module) -> Attachment:
        """Replace every target layer by a LowRankLinear."""
        if self.init == "pissa":
            return self._attach_pissa(model)
        if self.init == "orthogonal":
            return self.put_beside(model, begin=lambda name, module: nn.init.orthogonal_(module.lora_A))[0]
        return self.put_beside(model)[0]

    def _attach_pissa(self, model: nn.Module) -> Attachment:
        attachment, made = self.put_beside(model, PiSSALinear, lambda name, module: module.begin(name, self.niter))

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            config, tensors = attachment.as_peft()  # pyright: ignore[reportOptionalCall]
            for name, module in made.items():
                a, b = (x.detach() for x in module.factors())
                tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
            ranks = {name: 2 * rank for name, rank in config["rank_pattern"].items()}
            scale = math.sqrt(2) if self.use_rslora else 2
            return {**config, "r": 2 * self.rank, "lora_alpha": scale * self.alpha, "rank_pattern": ranks}, tensors

        buffers = {f"{name}.{which}" for name in made for which in ("start_A", "start_B")}
        return replace(attachment, buffers=buffers, as_peft=as_peft, from_peft=None)

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
        start = str(config.get("init_lora_weights")).lower()
        if start.startswith(OTHER_BASES):
            raise ModelError(
                f"this PEFT adapter belongs to base weights that its start {start!r} has changed; save it with PEFT's "
                "path_initial_model_for_weight_conversion, and it fits the plain base."
            )
        targets = config["target_modules"]
        return cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            dropout=config.get("lora_dropout", 0.0),
            target_modules=targets if isinstance(targets, str) else tuple(targets),
            use_rslora=config.get("use_rslora", False),
            bias=config.get("bias", "none"),
            rank_pattern=config.get("rank_pattern") or {},
        )


class PiSSALinear(LowRankLinear):
    """A frozen linear layer and what its greatest singular triplets have become: s (B A - B0 A0) beside W."""

    start_A: Tensor
    start_B: Tensor

    @torch.no_grad()
    def begin(self, name: str, niter: Literal["exact"] | int) -> None:
        """A, B and what they began as, from W.

        Raises:
            RecipeError: W has fewer triplets than the rank.
        """
        weight, rank = self.weight().float(), len(self.lora_A)
        if rank > min(weight.shape):
            raise RecipeError(
                f"start: pissa at rank {rank} asks for more singular triplets than the {min(weight.shape)} of {name}; "
                "take a lower rank, or give such layers ranks of their own."
            )
        if niter == "exact":
            u, sizes, v = torch.linalg.svd(weight, full_matrices=False)
            u, v = u[:, :rank], v[:rank].T
        else:
            u, sizes, v = torch.svd_lowrank(weight, q=rank, niter=niter)
        root = (sizes[:rank] / self.scale).sqrt()
        self.lora_A.copy_(root[:, None] * v.T)
        self.lora_B.copy_(u * root)
        self.register_buffer("start_A", self.lora_A.detach().clone())
        self.register_buffer("start_B", self.lora_B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Small differences, not two large products that nearly cancel: in bf16 the latter would drown the change."""
        grown = (self.lora_A - self.start_A, self.lora_B - self.start_B)
        return torch.cat([grown[0], self.start_A]), torch.cat([self.lora_B, grown[1]], 1)
