"""BiLoRA: trains the directions of the change on some rows and their strengths on the others, against overfitting.

Qiang, Zhang & Xie 2024, "BiLoRA: A Bi-level Optimization Framework for Overfitting-Resilient Low-Rank Adaptation of
Large Pre-trained Models", arXiv 2403.13037:

    W + s P diag(l) Q            P [D_out, R] starts at zero, Q [R, D_in] orthonormal, l [R] from its logits v [R]

    lower level, most rows       min over P, Q of   loss + regularization * (|P^T P - 1|^2 + |Q Q^T - 1|^2)
    upper level, the others      min over v    of   loss at the P, Q that the lower level arrives at

    l = softmax(v)               the values compete: they add up to 1
        v                        real: any sign, starting at 1 / R
        sigmoid(v)               binary: pushed towards 0 and 1 by a penalty on the entropy

l are the pseudo singular values. Their gradient is an approximation (train/steps/bilevel.py): with `unroll: 0` it is
first order, taken at the current P and Q; with `unroll` above 0 it looks through one plain gradient step of the lower
level, which triples the work on the lower rows. Stored in PEFT's format as a plain LoRA, B = P diag(l), with the same
logits there.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method, UpperLevel
from weitiao.model.adapters.low_rank import LowRankLinear, peft_lora_config
from weitiao.model.adapters.module_replacement import make_merge, make_set_enabled, replace_linears
from weitiao.model.adapters.peft_format import peft_name

FACTORS = ("lora_A", "lora_B")
Values = Literal["softmax", "real", "binary"]


class BiLoRA(Method):
    """Train the directions of a low-rank change on some rows and its pseudo singular values on the others."""

    learning_rate: ClassVar[float] = 2e-3
    learning_rate_reason: ClassVar[Message] = Message(
        "the values add up to 1, so P and Q change the output R times less than in LoRA"
    )
    low_rank: ClassVar[bool] = True
    step: ClassVar[str] = "bilevel"

    rank: int = Field(default=16, ge=1)
    """Rank R of the change."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    values: Values = "softmax"
    """Pseudo singular values: softmax (they add up to 1), real, or binary (near 0 or 1)."""
    upper_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Fraction of the rows that train the values; P and Q train on the rest. Chosen by row number, the same all run."""
    regularization: float = Field(default=0.1, ge=0)
    """Weight of the penalties (means over layers): P and Q near orthogonal, binary values near 0 or 1."""
    values_lr_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of the values, relative to that of P and Q."""
    unroll: float = Field(default=0.0, ge=0)
    """Step size of the lower level's step that the upper gradient looks through; 0: first order, the cheapest."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Replace every target layer by a BiLoRALinear."""
        layers: dict[str, BiLoRALinear] = replace_linears(
            model, self.target_modules, lambda _, x: BiLoRALinear(x, self.rank, self.alpha / self.rank, self.values)
        )
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        upper_names = frozenset(name for name in trainable if name.endswith(".value_logits"))

        def groups(step: int) -> list[dict[str, Any]]:
            upper = {"names": sorted(upper_names), "rate": self.values_lr_ratio, "weight_decay": 0.0}
            return [{"names": sorted(trainable - upper_names)}, upper]

        def penalty() -> Tensor:
            penalties = [
                self.regularization * (layer.orthogonality_penalty() + layer.entropy_penalty()) for layer in layers.values()
            ]
            return sum(penalties, penalties[0].new_zeros(())) / len(penalties)

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            config = peft_lora_config(model, layers, self.rank, self.alpha, self.target_modules)
            factors = {name: layer.factors() for name, layer in layers.items()}
            tensors = {
                peft_name(f"{name}.{factor}"): x.detach() for name, ab in factors.items() for factor, x in zip(FACTORS, ab)
            }
            return config, tensors

        return Attachment(
            trainable=trainable,
            groups=groups if self.values_lr_ratio != 1.0 else None,
            set_enabled=make_set_enabled(layers),
            merge=make_merge(model, layers),
            as_peft=as_peft,
            penalty=penalty,
            upper=UpperLevel(upper_names, self.upper_fraction, self.unroll),
        )


class BiLoRALinear(LowRankLinear):
    """A frozen linear layer and its change P diag(l) Q. P is lora_B, Q is lora_A, v is `value_logits`."""

    def __init__(self, base: nn.Module, rank: int, scale: float, values: Values) -> None:
        super().__init__(base, rank, scale)
        nn.init.orthogonal_(self.lora_A)
        initial = 1 / rank if values == "real" else 0.0
        self.value_logits = nn.Parameter(torch.full((rank,), initial, device=self.lora_A.device))
        self.values = values

    def singular_values(self) -> Tensor:
        """[R]: l from v."""
        if self.values == "softmax":
            return self.value_logits.softmax(0)
        return self.value_logits.sigmoid() if self.values == "binary" else self.value_logits

    def factors(self) -> tuple[Tensor, Tensor]:
        """Q [R, D_in] and P diag(l) [D_out, R]."""
        return self.lora_A, self.lora_B * self.singular_values()

    def entropy_penalty(self) -> Tensor:
        """Entropy of binary values, in nats; zero where each is 0 or 1, and for the other kinds of values."""
        v = self.value_logits
        if self.values != "binary":
            return v.new_zeros(())
        p = v.sigmoid()
        return -(p * nn.functional.logsigmoid(v) + (1 - p) * nn.functional.logsigmoid(-v)).sum()
