"""BitFit: only biases are trained.

Ben Zaken et al. 2021, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",
arXiv 2106.10199, sec. 3:

    y = W x + b          b learnt, W frozen          (part: only the queries' and the MLP's biases, sec. 4)

Many newer families (Llama, Mistral) have no biases: they are added, at nought, if you ask for it.
"""

from typing import ClassVar, Literal

import torch
from torch import nn

from weitiao.core.errors import RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_structure import MLP_OUT, QUERIES
from weitiao.model.adapters.surgery import Originals, linear_names


class BitFit(Method):
    """Train the biases."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "the paper's rates lie between 1e-4 and 1e-2 (arXiv 2106.10199, app. A)"
    trains_base: ClassVar[bool] = True

    biases: Literal["all", "query_mlp"] = "all"
    """Which biases: all, or those of queries and MLPs (about half, nearly as good)."""
    add_missing: bool = False
    """Give biases, at nought, to linear layers that have none."""

    def attach(self, model: nn.Module) -> Attachment:
        """Biases are trained in place.

        Raises:
            RecipeError: the model has none.
        """
        model.requires_grad_(False)
        added = self._add(model) if self.add_missing else 0
        trainable = {name for name, _ in model.named_parameters() if name.endswith("bias") and self._wanted(name)}
        if not trainable:
            raise RecipeError(
                "method: bitfit trains biases, and this model has none. Write method: {name: bitfit, add_missing: true} "
                "to give its linear layers some, or take ln_tuning, ia3 or lora."
            )
        weights = dict(model.named_parameters())
        for name in trainable:
            weights[name].requires_grad_(True)
        set_enabled = Originals(model, trainable).set_enabled
        return Attachment(trainable=trainable, set_enabled=set_enabled, merge=None if added else lambda: None)

    def _add(self, model: nn.Module) -> int:
        """How many layers got a bias."""
        bare = [model.get_submodule(name) for name in linear_names(model, "all-linear")]
        bare = [layer for layer in bare if layer.bias is None]
        for layer in bare:
            weight: torch.Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
            layer.bias = nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device))
        return len(bare)

    def _wanted(self, name: str) -> bool:
        if self.biases == "all":
            return True
        layer = name.removesuffix(".bias")
        mlp = layer.endswith(MLP_OUT) or ".mlp." in layer or "intermediate" in layer
        return mlp or layer.endswith(QUERIES) or layer.endswith("c_attn")
