"""BitFit: only biases are trained.

Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
arXiv 2106.10199, sec. 3:

    y = W x + b          b trained, W frozen          (biases: query_mlp trains only those of queries and MLPs, sec. 4)

Many newer families (Llama, Mistral) have no biases; `add_missing` adds them, starting at zero.
"""

from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_replacement import OriginalWeights, linear_names
from weitiao.model.adapters.module_structure import MLP_OUT, QUERIES


class BitFit(Method):
    """Train the biases."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[Message] = Message("the paper uses 1e-4 to 1e-2 (arXiv 2106.10199, app. A)")
    trains_base: ClassVar[bool] = True

    biases: Literal["all", "query_mlp"] = "all"
    """Which biases: all, or those of queries and MLPs (about half of them, nearly as good)."""
    add_missing: bool = False
    """Add biases, starting at zero, to linear layers that have none."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Make the biases trainable, in place.

        Raises:
            RecipeError: the model has none.
        """
        model.requires_grad_(False)
        num_added = _add_missing_biases(model) if self.add_missing else 0
        trainable = {name for name, _ in model.named_parameters() if name.endswith("bias") and self._is_target(name)}
        if not trainable:
            raise RecipeError(
                "method: bitfit trains biases, but this model has none. Set method.add_missing: true to add them to its "
                "linear layers, or use ln_tuning, ia3 or lora."
            )
        weights = dict(model.named_parameters())
        for name in trainable:
            weights[name].requires_grad_(True)
        set_enabled = OriginalWeights(model, trainable).set_enabled
        return Attachment(trainable=trainable, set_enabled=set_enabled, merge=None if num_added else lambda: None)

    def _is_target(self, name: str) -> bool:
        if self.biases == "all":
            return True
        layer = name.removesuffix(".bias")
        mlp = layer.endswith(MLP_OUT) or ".mlp." in layer or "intermediate" in layer
        return mlp or layer.endswith(QUERIES) or layer.endswith("c_attn")


def _add_missing_biases(model: nn.Module) -> int:
    """Give a zero bias to each linear layer that has none; returns how many that were."""
    layers = [model.get_submodule(name) for name in linear_names(model, "all-linear")]
    without_bias = [layer for layer in layers if layer.bias is None]
    for layer in without_bias:
        weight = layer.get_parameter("weight")
        layer.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device))
    return len(without_bias)
