"""AdaLoRA: LoRA in the form of a singular value decomposition; its rank budget moves to the layers that need it.

Zhang et al. 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", arXiv 2303.10512:

    W + s P diag(e) Q            P [D_out, R], e [R] starts at zero, Q [R, D_in]; P, Q kept near orthogonal (eq. 4)
    importance of a triplet      S = s(e) + mean s(P column) + mean s(Q row)                          (eq. 8)
    s(w) = sensitivity x uncertainty: the averages of |w dL/dw| and of its deviation                (eq. 9-11)
    budget b(t)                  from `rank` to `target_rank` per layer on average, cubic decay       (eq. 12)

Every `delta_t` steps the triplets of all layers are ranked together, and e becomes zero for all but the b(t) best. In the
final phase (`tfinal_ratio`) the selection no longer changes. Stored in PEFT's format, with the same logits there.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import InvalidValue
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.low_rank import LowRankLinear, peft_lora_config
from weitiao.model.adapters.module_replacement import make_merge, make_set_enabled, replace_linears
from weitiao.model.adapters.peft_format import PREFIX, load_peft_tensors

FACTORS = ("lora_A", "lora_B", "lora_E")


class AdaLoRA(Method):
    """Train low-rank changes, and decide the rank of each layer while training."""

    learning_rate: ClassVar[float] = 5e-3
    learning_rate_reason: ClassVar[Message] = Message(
        "the paper's 5e-4 to 2e-3 are for long runs; in about 100 steps 5e-3 reached a far lower loss (docs/methods.md)"
    )
    low_rank: ClassVar[bool] = True

    rank: int = Field(default=12, ge=1)
    """Initial rank of each layer; the paper uses 1.5 times the target rank."""
    target_rank: int = Field(default=8, ge=1)
    """Final rank per layer, on average."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    tinit_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps, at the start, with the full budget."""
    tfinal_ratio: float = Field(default=0.3, ge=0, lt=1)
    """Fraction of the steps, at the end, in which the selection no longer changes."""
    delta_t: int = Field(default=10, ge=1)
    """Steps between two selections."""
    betas: tuple[float, float] = (0.85, 0.85)
    """Decay rates of the averages of sensitivity and of uncertainty."""
    orth_reg_weight: float = Field(default=0.5, ge=0)
    """Weight of the penalty that keeps P and Q near orthogonal (mean over layers)."""

    @model_validator(mode="after")
    def _check_budget(self) -> "AdaLoRA":
        if self.target_rank > self.rank:
            raise InvalidValue(
                "target_rank ({target_rank}) is the rank left at the end; it cannot exceed rank ({rank})",
                target_rank=self.target_rank,
                rank=self.rank,
            )
        if self.tinit_ratio + self.tfinal_ratio >= 1:
            raise InvalidValue(
                "tinit_ratio ({tinit_ratio}) and tfinal_ratio ({tfinal_ratio}) leave no steps between them in which the "
                "budget can decay; their sum must be below 1",
                tinit_ratio=self.tinit_ratio,
                tfinal_ratio=self.tfinal_ratio,
            )
        return self

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Replace every target layer by an AdaLoRALinear."""
        scale = self.alpha / (self.rank + 1e-5)  # as PEFT divides
        layers: dict[str, AdaLoRALinear] = replace_linears(
            model, self.target_modules, lambda name, layer: AdaLoRALinear(layer, self.rank, scale)
        )
        weights = dict(model.named_parameters())
        trainable = {name for name, weight in weights.items() if weight.requires_grad}

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            config = peft_lora_config(model, layers, self.rank, self.alpha, self.target_modules)
            own = {"peft_type": "ADALORA", "init_r": self.rank, "target_r": self.target_rank, "total_step": 1}
            return {**config, **own}, {PREFIX + name: weights[name].detach() for name in trainable}

        def penalty() -> Tensor:
            penalties = [layer.orthogonality_penalty() for layer in layers.values()]
            return self.orth_reg_weight * sum(penalties, penalties[0].new_zeros(())) / len(penalties)

        return Attachment(
            trainable=trainable,
            buffers={f"{name}.{buffer}" for name, layer in layers.items() for buffer in layer.state_buffers},
            set_enabled=make_set_enabled(layers),
            merge=make_merge(model, layers),
            as_peft=as_peft,
            from_peft=lambda tensors: load_peft_tensors(model, trainable, tensors, lambda name: PREFIX + name),
            penalty=penalty,
            after_step=lambda step, steps: self.update_budget(list(layers.values()), step, steps),
        )

    @torch.no_grad()
    def update_budget(self, layers: Sequence["AdaLoRALinear"], step: int, steps: int) -> None:
        """Runs after each optimizer step: update the importances and, every `delta_t` steps, select the triplets.

        Args:
            step: the step that was taken, from 0.
            steps: how many the run takes.
        """
        for layer in layers:
            layer.update_importance(*self.betas)
        begin, end = self.tinit_ratio * steps, (1 - self.tfinal_ratio) * steps
        done = step + 1
        if begin < done <= end and (done % self.delta_t == 0 or done == int(end)):
            mean_rank = self.target_rank + (self.rank - self.target_rank) * (1 - (done - begin) / (end - begin)) ** 3
            importances = torch.cat([layer.importance() for layer in layers])
            budget = max(1, round(mean_rank * len(layers)))
            threshold = importances.topk(min(budget, len(importances))).values[-1]
            for layer in layers:
                layer.rank_mask.copy_((layer.importance() >= threshold).float())
        for layer in layers:  # in every step: the optimizer has moved masked values away from zero again
            layer.lora_E.mul_(layer.rank_mask[:, None])

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

    rank_mask: Tensor

    def __init__(self, base: nn.Module, rank: int, scale: float) -> None:
        super().__init__(base, rank, scale)
        nn.init.normal_(self.lora_A, std=0.02)
        nn.init.normal_(self.lora_B, std=0.02)
        self.lora_E = nn.Parameter(torch.zeros(rank, 1, device=self.lora_A.device))
        self.register_buffer("rank_mask", torch.ones(rank, device=self.lora_A.device))  # 1: the triplet is in the budget
        for factor in FACTORS:
            for statistic in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{statistic}_{factor}", torch.zeros_like(self.get_parameter(factor)))

    @property
    def state_buffers(self) -> list[str]:
        """Names of the buffers that a checkpoint must save."""
        return [
            "rank_mask",
            *(f"{statistic}_{factor}" for factor in FACTORS for statistic in ("sensitivity", "uncertainty")),
        ]

    def factors(self) -> tuple[Tensor, Tensor]:
        """diag(e) Q [R, D_in] and P [D_out, R]."""
        return self.lora_A * self.lora_E, self.lora_B

    def update_importance(self, beta1: float, beta2: float) -> None:
        """Add this step's |w dL/dw| to the averages (eq. 9 and 10)."""
        for factor in FACTORS:
            weight = self.get_parameter(factor)
            if weight.grad is not None:
                sensitivity = self.get_buffer(f"sensitivity_{factor}")
                uncertainty = self.get_buffer(f"uncertainty_{factor}")
                current = (weight * weight.grad).abs()
                sensitivity.mul_(beta1).add_(current, alpha=1 - beta1)
                uncertainty.mul_(beta2).add_((current - sensitivity).abs(), alpha=1 - beta2)

    def importance(self) -> Tensor:
        """[R]: the importance of each triplet (eq. 8)."""
        a, b, e = (self.get_buffer(f"sensitivity_{x}") * self.get_buffer(f"uncertainty_{x}") for x in FACTORS)
        return e[:, 0] + a.mean(1) + b.mean(0)
