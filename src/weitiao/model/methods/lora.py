"""LoRA: trains a low-rank change of each weight, W + s B A.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, eq. 3; rsLoRA's scale:
Kalajdzievski 2023, arXiv 2312.03732, eq. 7.

    x [T, D_in] --> A [R, D_in] --> B [D_out, R] --> * s --> + W x        s = alpha / R   (rsLoRA: alpha / sqrt(R))
                    random          zero

B starts at zero, so a new LoRA changes no output. It has R (D_in + D_out) weights per layer, and costs nothing at
inference after merging. Stored in PEFT's format, with the same logits there.

`init: pissa` (Meng et al. 2024, "PiSSA", arXiv 2404.02948, eq. 2 to 4) trains the R largest singular triplets of W. The
residual of W stays frozen:

    W = U S V^T        s B0 A0 = U[:R] S[:R] V[:R]^T        y = (W - s B0 A0) x + s B A x,    A, B start at A0, B0

This code does not change W. It stores A0 and B0 with the result and computes the same function as
y = W x + s (B [A - A0] + [B - B0] A0) x. At the start that is W x bit-exactly, switched off it is W x again, and the
result does not depend on the SVD of the machine that loads it. The extra product has rank 2 R. In PEFT's format it is a
plain LoRA of rank 2 R.
"""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment
from weitiao.model.adapters.low_rank import LowRank, LowRankLinear
from weitiao.model.adapters.peft_format import PREFIX, peft_tensors

BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")  # PEFT's inits that also change the base weights


class LoRA(LowRank):
    """Train a low-rank change of each weight; the base weights stay frozen."""

    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[Message] = Message("2e-4 is the LoRA paper's value for GPT-2 (arXiv 2106.09685, app. D)")
    low_rank: ClassVar[bool] = True

    init: Literal["kaiming", "orthogonal", "pissa"] = "kaiming"
    """Initial A: kaiming uniform as in PEFT, orthonormal rows, or (with B) the weight's largest singular triplets."""
    niter: Literal["exact"] | Annotated[int, Field(ge=1)] = "exact"
    """SVD for init: pissa: exact, or the iterations of a randomized SVD, faster for wide layers (the paper uses 16)."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Replace every target layer by a LowRankLinear."""
        if self.init == "pissa":
            return self._attach_pissa(model)
        if self.init == "orthogonal":
            return self.attach_layers(model, LowRankLinear, lambda name, layer: nn.init.orthogonal_(layer.lora_A))[0]
        return self.attach_layers(model, LowRankLinear)[0]

    def _attach_pissa(self, model: PreTrainedModel) -> Attachment:
        attachment, layers = self.attach_layers(
            model, PiSSALinear, lambda name, layer: layer.init_from_svd(name, self.niter)
        )

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            config, tensors = self.peft_config(model, layers), peft_tensors(model, attachment.trainable)
            for name, layer in layers.items():
                a, b = (x.detach() for x in layer.factors())
                tensors |= {f"{PREFIX}{name}.lora_A.weight": a, f"{PREFIX}{name}.lora_B.weight": b}
            rank_pattern = {name: 2 * rank for name, rank in config["rank_pattern"].items()}
            # the rank doubles, so alpha grows with it to keep the scale (alpha / R, or alpha / sqrt(R)) as it is
            growth = math.sqrt(2) if self.use_rslora else 2
            return {**config, "r": 2 * self.rank, "lora_alpha": growth * self.alpha, "rank_pattern": rank_pattern}, tensors

        buffers = {f"{name}.{factor}" for name in layers for factor in ("initial_A", "initial_B")}
        return replace(attachment, buffers=buffers, as_peft=as_peft, from_peft=None)

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "LoRA | None":
        """The LoRA that a PEFT adapter_config.json describes.

        Raises:
            ModelError: it uses a variant that this file does not implement.
        """
        if config.get("peft_type") != "LORA" or config.get("use_dora"):
            return None
        for key in ("alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias"):
            if config.get(key):
                raise ModelError("this PEFT adapter uses {key}, which weitiao's lora does not support.", key=key)
        init = str(config.get("init_lora_weights")).lower()
        if init.startswith(BASE_CHANGING_INITS):
            raise ModelError(
                "this PEFT adapter needs the base weights that its init_lora_weights {init!r} changed. Save it with PEFT's "
                "path_initial_model_for_weight_conversion; then it fits the original base.",
                init=init,
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
    """A frozen linear layer W and the trained change of its largest singular triplets, s (B A - B0 A0)."""

    initial_A: Tensor
    initial_B: Tensor

    @torch.no_grad()
    def init_from_svd(self, name: str, niter: Literal["exact"] | int) -> None:
        """Set A and B, and their stored initial values, from the SVD of W.

        Raises:
            RecipeError: W has fewer singular triplets than the rank.
        """
        weight, rank = self.weight().float(), len(self.lora_A)
        if rank > min(weight.shape):
            raise RecipeError(
                "method.rank: init pissa at rank {rank} needs more singular triplets than the {available} of {layer}. "
                "Use a lower rank, or set a lower one for such layers in rank_pattern.",
                rank=rank,
                available=min(weight.shape),
                layer=name,
            )
        if niter == "exact":
            u, singular_values, v = torch.linalg.svd(weight, full_matrices=False)
            u, v = u[:, :rank], v[:rank].T
        else:
            u, singular_values, v = torch.svd_lowrank(weight, q=rank, niter=niter)
        root = (singular_values[:rank] / self.scale).sqrt()
        self.lora_A.copy_(root[:, None] * v.T)
        self.lora_B.copy_(u * root)
        self.register_buffer("initial_A", self.lora_A.detach().clone())
        self.register_buffer("initial_B", self.lora_B.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """[2R, D_in] and [D_out, 2R] whose product is B A - B0 A0.

        Built from the small differences A - A0 and B - B0. In bf16 the rounding errors of the two large products B A and
        B0 A0 would be larger than their difference.
        """
        delta_a, delta_b = self.lora_A - self.initial_A, self.lora_B - self.initial_B
        return torch.cat([delta_a, self.initial_A]), torch.cat([self.lora_B, delta_b], 1)
