"""BiLoRA: directions of the change are learnt from some rows, their strengths from the others, against overfitting.

Qiang, Zhang & Xie 2024, "BiLoRA: A Bi-level Optimization Framework for Overfitting-Resilient Low-Rank Adaptation of
Large Pre-trained Models", arXiv 2403.13037:

    W + s P diag(l) Q            P [D_out, R] from nought, Q [R, D_in] orthonormal, l [R] from its logits v [R]

    lower level, most rows       min over P, Q of   loss + regularization * (|P^T P - 1|^2 + |Q Q^T - 1|^2)
    upper level, the others      min over v    of   loss at the P, Q that the lower level comes to

    l = softmax(v)               strengths compete: they add up to 1
        v                        real: any sign, from 1 / R
        sigmoid(v)               binary: pushed towards 0 and 1 by a penalty on its entropy

The upper gradient is an approximation (train/steps/bilevel.py): with `unroll: 0` of first order, taken at the P and Q of
this step; with `unroll` above 0 through one plain step of the lower level, for three times the work on its rows. Stored
in PEFT's format as a plain LoRA, B = P diag(l), and equal there.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.method import Attachment, Method, UpperLevel
from weitiao.model.adapters.low_rank import LowRankLinear, peft_lora_config
from weitiao.model.adapters.surgery import enabling, folding, peft_name, wrap

LORA = ("lora_A", "lora_B")
Strengths = Literal["softmax", "real", "binary"]


class BiLoRA(Method):
    """Learn the directions of a low-rank change from some rows and their strengths from others."""

    learning_rate: ClassVar[float] = 2e-3
    learning_rate_reason: ClassVar[str] = "strengths add up to 1, so P and Q move the output R times less than in LoRA"
    step: ClassVar[str] = "bilevel"

    rank: int = Field(default=16, ge=1)
    """Rank R of the change."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Which linear layers: all-linear, last names ([q_proj, v_proj]) or a regular expression for whole names."""
    values: Strengths = "softmax"
    """What the strengths (pseudo singular values) may be: softmax, real or binary."""
    upper_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the rows that the strengths learn from; P and Q learn from the rest. By row number, the same all run."""
    regularization: float = Field(default=0.1, ge=0)
    """Weight of the penalties (means over layers): P and Q near orthogonal, binary strengths near 0 or 1."""
    values_lr_ratio: float = Field(default=1.0, gt=0)
    """The strengths learn at this many times the rate."""
    unroll: float = Field(default=0.0, ge=0)
    """Length of the lower level's step that the upper gradient looks through; 0: first order, the cheapest."""

    def attach(self, model: nn.Module) -> Attachment:
        """Replace every target layer by a Weighted."""
        made: dict[str, BiLoRALinear] = wrap(
            model, self.target_modules, lambda _, x: BiLoRALinear(x, self.rank, self.alpha / self.rank, self.values)
        )
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        strengths = frozenset(name for name in trainable if name.endswith(".strength"))

        def groups(step: int) -> list[dict[str, Any]]:
            upper = {"names": sorted(strengths), "rate": self.values_lr_ratio, "weight_decay": 0.0}
            return [{"names": sorted(trainable - strengths)}, upper]

        def penalty() -> Tensor:
            each = [self.regularization * (x.orthogonality_penalty() + x.entropy_penalty()) for x in made.values()]
            return sum(each) / len(each)  # pyright: ignore[reportReturnType]

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            config = peft_lora_config(model, made, self.rank, self.alpha, self.target_modules)
            factors = {name: x.factors() for name, x in made.items()}
            tensors = {peft_name(f"{name}.{key}"): x.detach() for name, ab in factors.items() for key, x in zip(LORA, ab)}
            return config, tensors

        return Attachment(
            trainable=trainable,
            groups=groups if self.values_lr_ratio != 1.0 else None,
            set_enabled=enabling(made),
            merge=folding(model, made),
            as_peft=as_peft,
            penalty=penalty,
            upper=UpperLevel(strengths, self.upper_share, self.unroll),
        )


class BiLoRALinear(LowRankLinear):
    """A frozen linear layer and its change P diag(l) Q; P is lora_B, Q is lora_A, v is `strength`."""

    def __init__(self, base: nn.Module, rank: int, scale: float, values: Strengths) -> None:
        super().__init__(base, rank, scale)
        nn.init.orthogonal_(self.lora_A)
        begin = 1 / rank if values == "real" else 0.0
        self.strength = nn.Parameter(torch.full((rank,), begin, device=self.lora_A.device))
        self.values = values

    def strengths(self) -> Tensor:
        """[R]: l of v."""
        if self.values == "softmax":
            return self.strength.softmax(0)
        return self.strength.sigmoid() if self.values == "binary" else self.strength

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.lora_B * self.strengths()

    def entropy_penalty(self) -> Tensor:
        """Entropy of binary strengths, in nats: nought where each is 0 or 1."""
        v = self.strength
        if self.values != "binary":
            return v.new_zeros(())
        p = v.sigmoid()
        return -(p * nn.functional.logsigmoid(v) + (1 - p) * nn.functional.logsigmoid(-v)).sum()
