"""Bottleneck adapters: a small network in every layer, its output added to what flows on.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751, fig. 2: two a layer.
Pfeiffer et al. 2020, "AdapterFusion", arXiv 2005.00247, sec. 3.2: one, behind the MLP.
He et al. 2021, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv 2110.04366, table 1: parallel.

    h [T, D] --> Linear [D, M] --> act --> Linear [M, D] --> + h         the second Linear starts at nought
    parallel: the same, from the MLP's input, times a scale, added to the MLP's output

Costs about 2 D M weights each. It does not fold into the base weights, for it is not linear.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.activations import ACT2FN

from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_structure import ends, mlp_entrances
from weitiao.model.adapters.surgery import enabling, set_submodule

PARALLEL_SCALE = 4.0  # He et al., sec. 4.6


class Adapter(Method):
    """Put small networks into every layer and learn them."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "small new networks beside frozen weights; 1e-4 to 1e-3 is usual for adapters"

    variant: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """Where: behind attention and MLP, behind the MLP alone, or beside the MLP."""
    bottleneck: int = Field(default=32, ge=1)
    """Width M inside."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """Between the two layers."""

    def attach(self, model: nn.Module) -> Attachment:
        """Put a network at each place."""
        model.requires_grad_(False)
        attention, mlp = ends(model)
        entrances = mlp_entrances(model, mlp) if self.variant == "parallel" else {}
        made: dict[str, AdapterLinear] = {}
        for name in [*attention, *mlp] if self.variant == "houlsby" else mlp:
            made[name] = AdapterLinear(model.get_submodule(name), self.bottleneck, self.activation)
            if entrances:
                made[name].listen_to(model.get_submodule(entrances[name]))
            set_submodule(model, name, made[name])

        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        return Attachment(trainable=trainable, set_enabled=enabling(made))


class AdapterLinear(nn.Module):
    """A frozen linear layer with a bottleneck behind it, or beside what led to it."""

    def __init__(self, base: nn.Module, bottleneck: int, activation: str) -> None:
        super().__init__()
        weight: Tensor = base.weight  # pyright: ignore[reportAssignmentType]
        width = base.nf if hasattr(base, "nf") else base.out_features
        self.base_layer, self.on, self.parallel = base, True, False
        self.down = nn.Linear(width, bottleneck, device=weight.device)  # pyright: ignore[reportArgumentType]
        self.up = nn.Linear(bottleneck, width, device=weight.device)  # pyright: ignore[reportArgumentType]
        self.activation = ACT2FN[activation]
        self.input_features: list[Tensor] = []
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight  # pyright: ignore[reportReturnType]

    def factors(self) -> tuple[Tensor, Tensor]:
        """The bottleneck's two weights: [M, D] and [D, M]."""
        return self.down.weight, self.up.weight

    def listen_to(self, entrance: nn.Module) -> None:
        """Be parallel: start from what the MLP is given."""
        self.parallel = True
        entrance.register_forward_pre_hook(lambda module, given: self.input_features.__setitem__(slice(None), [given[0]]))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if not self.on:
            return out
        if self.parallel:
            return out + PARALLEL_SCALE * self._through(self.input_features.pop())
        return out + self._through(out)

    def _through(self, x: Tensor) -> Tensor:
        down = torch.nn.functional.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        return torch.nn.functional.linear(self.activation(down), self.up.weight.to(x.dtype), self.up.bias.to(x.dtype))
