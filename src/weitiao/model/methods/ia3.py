"""IA3: learn to scale keys, values and the MLP's inner activations; the weights stay as they are.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
arXiv 2205.05638, sec. 3.3:

    softmax(Q (l_k * K)^T / sqrt d) (l_v * V)          (l_ff * act(W1 x)) W2          l start at one

One number a channel: the smallest method of all that reaches every layer. Stored in PEFT's format, and equal there.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_structure import ends, keys_and_values, peft_task
from weitiao.model.adapters.surgery import enabling, folding, linear_names, peft_tensors, set_submodule, take_peft

Targets = str | tuple[str, ...]


class IA3(Method):
    """Learn one scale a channel for keys, values and the MLP's inside."""

    learning_rate: ClassVar[float] = 1e-2
    learning_rate_reason: ClassVar[str] = (
        "the paper's 3e-3 is for 1,000 steps; in about 100 steps 1e-2 learnt more (docs/methods.md)"
    )

    target_modules: Targets = "auto"
    """Which linear layers are scaled: auto (what makes keys and values, and the MLP's last), names or an expression."""
    feedforward_modules: Targets = "auto"
    """Which of them are scaled at their input (the MLP's inside) and not at their output."""

    def attach(self, model: nn.Module) -> Attachment:
        """Put a scale at each target."""
        inside = ends(model)[1] if self.feedforward_modules == "auto" else linear_names(model, self.feedforward_modules)
        if self.target_modules == "auto":
            named = [*(where.layer for pair in keys_and_values(model) for where in pair), *inside]
        else:
            named = linear_names(model, self.target_modules)
        model.requires_grad_(False)
        made = {name: IA3Linear(model.get_submodule(name), name in inside) for name in dict.fromkeys(named)}
        for name, module in made.items():
            set_submodule(model, name, module)

        trainable = {f"{name}.ia3_l" for name in made}
        return Attachment(
            trainable=trainable,
            set_enabled=enabling(made),
            merge=folding(model, made),
            as_peft=lambda: (_config(model, made), peft_tensors(model, trainable)),
            from_peft=lambda tensors: take_peft(model, trainable, tensors),
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "IA3 | None":
        """The IA3 that a PEFT adapter_config.json describes."""
        if config.get("peft_type") != "IA3":
            return None
        targets, inside = config["target_modules"], config["feedforward_modules"]
        as_is = lambda x: x if isinstance(x, str) else tuple(x)  # noqa: E731
        return cls(target_modules=as_is(targets), feedforward_modules=as_is(inside))


class IA3Linear(nn.Module):
    """A frozen linear layer with a learnt scale at its output, or at its input (`inside`). PEFT's name and shape."""

    def __init__(self, base: nn.Module, inside: bool) -> None:
        super().__init__()
        weight: Tensor = base.weight  # pyright: ignore[reportAssignmentType]
        rows, columns = weight.T.shape if isinstance(base, Conv1D) else weight.shape
        self.base_layer, self.inside, self.on = base, inside, True
        shape = (1, columns) if inside else (rows, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, dtype=torch.float32, device=weight.device))

    @property
    def weight(self) -> Any:
        """The frozen layer's own, which some families look at (T5)."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        scale = self.ia3_l.flatten()
        if self.inside:
            return self.base_layer(x * scale.to(x.dtype))
        out = self.base_layer(x)
        return out * scale.to(out.dtype)

    @torch.no_grad()
    def fold(self) -> nn.Module:
        """The base layer with the scale in its weight."""
        weight: Any = self.base_layer.weight
        scale = self.ia3_l.T if isinstance(self.base_layer, Conv1D) else self.ia3_l
        weight.copy_((weight.float() * scale).to(weight.dtype))
        bias: Any = self.base_layer.bias
        if bias is not None and not self.inside:
            bias.copy_((bias.float() * self.ia3_l.flatten()).to(bias.dtype))
        return self.base_layer


def _config(model: nn.Module, made: dict[str, IA3Linear]) -> dict[str, Any]:
    """What PEFT's adapter_config.json says: every layer by its whole name."""
    return {
        "peft_type": "IA3",
        "task_type": peft_task(model),
        "target_modules": sorted(made),
        "feedforward_modules": sorted(name for name, module in made.items() if module.inside),
        "fan_in_fan_out": any(isinstance(module.base_layer, Conv1D) for module in made.values()),
        "inference_mode": True,
        "init_ia3_weights": True,
    }
