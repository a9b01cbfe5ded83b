"""IA3: trains scales of keys, values and the MLP's inner activations; the weights stay frozen.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
arXiv 2205.05638, sec. 3.3:

    softmax(Q (l_k * K)^T / sqrt d) (l_v * V)          (l_ff * act(W1 x)) W2          l starts at one

One number per channel: the smallest method that reaches every layer. Stored in PEFT's format, with the same logits there.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_replacement import linear_names, make_merge, make_set_enabled, shape_of
from weitiao.model.adapters.module_structure import keys_and_values, sublayer_outputs
from weitiao.model.adapters.peft_format import load_peft_tensors, peft_task, peft_tensors

Targets = str | tuple[str, ...]


class IA3(Method):
    """Train one scale per channel of keys, values and the MLP's inner activations."""

    learning_rate: ClassVar[float] = 1e-2
    learning_rate_reason: ClassVar[Message] = Message(
        "the paper's 3e-3 is for 1,000 steps; in about 100 steps 1e-2 reached a lower loss (docs/methods.md)"
    )

    target_modules: Targets = "auto"
    """Linear layers to scale: auto (keys, values and the MLP's last layer), last names, or a regular expression."""
    feedforward_modules: Targets = "auto"
    """Those of them that are scaled at their input (the MLP's inner activations) instead of their output."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Replace every target layer by an IA3Linear."""
        feedforward = (
            sublayer_outputs(model)[1]
            if self.feedforward_modules == "auto"
            else linear_names(model, self.feedforward_modules)
        )
        if self.target_modules == "auto":
            targets = [*(columns.layer for pair in keys_and_values(model) for columns in pair), *feedforward]
        else:
            targets = linear_names(model, self.target_modules)
        model.requires_grad_(False)
        # GPT-2 makes keys and values in one layer, so a name may come twice
        layers = {name: IA3Linear(model.get_submodule(name), name in feedforward) for name in dict.fromkeys(targets)}
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        trainable = {f"{name}.ia3_l" for name in layers}
        return Attachment(
            trainable=trainable,
            set_enabled=make_set_enabled(layers),
            merge=make_merge(model, layers),
            as_peft=lambda: (_config(model, layers), peft_tensors(model, trainable)),
            from_peft=lambda tensors: load_peft_tensors(model, trainable, tensors),
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "IA3 | None":
        """The IA3 that a PEFT adapter_config.json describes."""
        if config.get("peft_type") != "IA3":
            return None
        targets, feedforward = (
            x if isinstance(x, str) else tuple(x) for x in (config["target_modules"], config["feedforward_modules"])
        )
        return cls(target_modules=targets, feedforward_modules=feedforward)


class IA3Linear(nn.Module):
    """A frozen linear layer with a trained scale of its output, or of its input (feedforward). PEFT's name and shape."""

    def __init__(self, base: nn.Module, feedforward: bool) -> None:
        super().__init__()
        out_features, in_features = shape_of(base)
        self.base_layer, self.feedforward, self.on = base, feedforward, True
        shape = (1, in_features) if feedforward else (out_features, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, dtype=torch.float32, device=next(base.parameters()).device))

    @property
    def weight(self) -> Any:
        """The frozen layer's own weight; some families read its dtype (T5)."""
        return self.base_layer.weight

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base_layer(x)
        scale = self.ia3_l.flatten()
        if self.feedforward:
            return self.base_layer(x * scale.to(x.dtype))
        out = self.base_layer(x)
        return out * scale.to(out.dtype)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with the scale merged into its weight and bias."""
        weight: Any = self.base_layer.weight
        scale = self.ia3_l.T if isinstance(self.base_layer, Conv1D) else self.ia3_l
        weight.copy_((weight.float() * scale).to(weight.dtype))
        bias: Any = self.base_layer.bias
        if bias is not None and not self.feedforward:
            bias.copy_((bias.float() * self.ia3_l.flatten()).to(bias.dtype))
        return self.base_layer


def _config(model: PreTrainedModel, layers: dict[str, IA3Linear]) -> dict[str, Any]:
    """PEFT's adapter_config.json, with every layer by its full name."""
    return {
        "peft_type": "IA3",
        "task_type": peft_task(model),
        "target_modules": sorted(layers),
        "feedforward_modules": sorted(name for name, layer in layers.items() if layer.feedforward),
        "fan_in_fan_out": any(isinstance(layer.base_layer, Conv1D) for layer in layers.values()),
        "inference_mode": True,
        "init_ia3_weights": True,
    }
