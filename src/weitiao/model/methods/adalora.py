"""AdaLoRA: LoRA as a singular value decomposition, whose rank budget moves to the layers that need it.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512:

    W + s P diag(e) Q            P [D_out, R], e [R] from nought, Q [R, D_in]; P, Q kept near orthogonal (eq. 4)
    importance of a triplet      S = s(e) + mean s(P column) + mean s(Q row)                          (eq. 8)
    s(w) = average of |w dL/dw|  x  average of its deviation                                        (eq. 9-11)
    budget b(t)                  from `rank` to `target` a layer on average, falling by the cube      (eq. 12)

Every `every` steps the triplets of all layers are ranked, and all but the b(t) best have e set to nought; in the last
third the choice is final. Stored in PEFT's format, and equal there.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.low_rank import LowRankLinear, peft_lora_config
from weitiao.model.adapters.surgery import PREFIX, enabling, folding, take_peft, wrap

KINDS = ("lora_A", "lora_B", "lora_E")


class AdaLoRA(Method):
    """Learn low-rank changes, and how much rank each layer deserves."""

    learning_rate: ClassVar[float] = 5e-3
    learning_rate_reason: ClassVar[str] = (
        "the paper's 5e-4 to 2e-3 are for long runs; in about 100 steps 5e-3 learnt far more (docs/methods.md)"
    )

    rank: int = Field(default=12, ge=1)
    """Rank that each layer begins with; the paper takes half as much again as the target."""
    target_rank: int = Field(default=8, ge=1)
    """Rank a layer that is left on average."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    tinit_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps with the full budget at first."""
    tfinal_ratio: float = Field(default=0.3, ge=0, lt=1)
    """Share of the steps at the end in which the choice stands."""
    delta_t: int = Field(default=10, ge=1)
    """Steps between two choices."""
    betas: tuple[float, float] = (0.85, 0.85)
    """How slowly the average importance, and its deviation, move."""
    orth_reg_weight: float = Field(default=0.5, ge=0)
    """Weight of the penalty that keeps P and Q near orthogonal (a mean over layers)."""

    @model_validator(mode="after")
    def _fits(self) -> "AdaLoRA":
        if self.target_rank > self.rank:
            raise ValueError(f"target ({self.target_rank}) is what is left of rank ({self.rank}); it cannot be more")
        if self.tinit_ratio + self.tfinal_ratio >= 1:
            raise ValueError("warm and final leave no steps in between in which the budget could fall")
        return self

    def attach(self, model: nn.Module) -> Attachment:
        """Replace every target layer by a Triplets."""
        scale = self.alpha / (self.rank + 1e-5)  # as PEFT divides
        made: dict[str, AdaLoRALinear] = wrap(model, self.target_modules, lambda _, x: AdaLoRALinear(x, self.rank, scale))

        def config() -> dict[str, Any]:
            about = peft_lora_config(model, made, self.rank, self.alpha, self.target_modules)
            ranks = {"init_r": self.rank, "target_r": self.target_rank, "total_step": 1}
            return {**about, "peft_type": "ADALORA", **ranks}

        weights = dict(model.named_parameters())
        trainable = {name for name, weight in weights.items() if weight.requires_grad}
        return Attachment(
            trainable=trainable,
            buffers={f"{name}.{key}" for name, module in made.items() for key in module.memory},
            set_enabled=enabling(made),
            merge=folding(model, made),
            as_peft=lambda: (config(), {PREFIX + name: weights[name].detach() for name in trainable}),
            from_peft=lambda tensors: take_peft(model, trainable, tensors, lambda name: PREFIX + name),
            penalty=lambda: self.orth_reg_weight * sum(x.orthogonality_penalty() for x in made.values()) / len(made),  # pyright: ignore
            after_step=lambda step, steps: self.allot(list(made.values()), step, steps),
        )

    @torch.no_grad()
    def allot(self, layers: Sequence["AdaLoRALinear"], step: int, steps: int) -> None:
        """After a step: remember what mattered; now and then, choose anew who is left."""
        for layer in layers:
            layer.remember(*self.betas)
        begin, end = self.tinit_ratio * steps, (1 - self.tfinal_ratio) * steps
        done = step + 1
        if begin < done <= end and (done % self.delta_t == 0 or done == int(end)):
            left = self.target_rank + (self.rank - self.target_rank) * (1 - (done - begin) / (end - begin)) ** 3
            scores = torch.cat([layer.importance() for layer in layers])
            many = max(1, round(left * len(layers)))
            least = scores.topk(min(many, len(scores))).values[-1]
            for layer in layers:
                layer.kept.copy_((layer.importance() >= least).float())
        for layer in layers:
            layer.lora_E.mul_(layer.kept[:, None])

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "AdaLoRA | None":
        """The AdaLoRA that a PEFT adapter_config.json describes."""
        if config.get("peft_type") != "ADALORA":
            return None
        targets = config["target_modules"]
        targets = targets if isinstance(targets, str) else tuple(targets)
        rank, alpha = config["init_r"], config["lora_alpha"]
        return cls(rank=rank, target_rank=min(rank, config["target_r"]), alpha=alpha, target_modules=targets)


class AdaLoRALinear(LowRankLinear):
    """A frozen linear layer and its change P diag(e) Q. PEFT's names: lora_B, lora_E, lora_A."""

    kept: Tensor

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__(base, rank, scale)
        nn.init.normal_(self.lora_A, std=0.02)
        nn.init.normal_(self.lora_B, std=0.02)
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=self.lora_A.device))
        self.register_buffer("kept", torch.ones(rank, device=self.lora_A.device))
        for kind in KINDS:
            for what in ("importance", "deviation"):
                self.register_buffer(f"{what}_{kind}", torch.zeros_like(getattr(self, kind)))

    @property
    def memory(self) -> list[str]:
        """Buffers that belong to the State."""
        return ["kept", *(f"{what}_{kind}" for kind in KINDS for what in ("importance", "deviation"))]

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(e) Q and P."""
        return self.lora_A * self.lora_E, self.lora_B

    def remember(self, slow: float, slower: float) -> None:
        """Take this step's |w dL/dw| into the averages (eq. 9 and 10)."""
        for kind in KINDS:
            weight = getattr(self, kind)
            if weight.grad is not None:
                importance, deviation = self.get_buffer(f"importance_{kind}"), self.get_buffer(f"deviation_{kind}")
                now = (weight * weight.grad).abs()
                importance.mul_(slow).add_(now, alpha=1 - slow)
                deviation.mul_(slower).add_((now - importance).abs(), alpha=1 - slower)

    def importance(self) -> Tensor:
        """[R]: of each triplet (eq. 8)."""
        a, b, e = (self.get_buffer(f"importance_{kind}") * self.get_buffer(f"deviation_{kind}") for kind in KINDS)
        return e[:, 0] + a.mean(1) + b.mean(0)
