"""Bottleneck adapters: a small trained network in every layer, whose output is added to the residual stream.

Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv 1902.00751, fig. 2: two per layer.
Pfeiffer et al. 2020, "AdapterFusion", arXiv 2005.00247, sec. 3.2: one, after the MLP.
He et al. 2021, "Towards a Unified View of Parameter-Efficient Transfer Learning", arXiv 2110.04366, table 1: parallel.

    h [T, D] --> Linear [D, M] --> act --> Linear [M, D] --> + h         the second Linear starts at zero
    parallel: the same on the MLP's input, times a scale, added to the MLP's output

Costs about 2 D M weights each. It is not linear, so it cannot be merged into the base weights.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_replacement import make_set_enabled, shape_of
from weitiao.model.adapters.module_structure import mlp_inputs, sublayer_outputs

PARALLEL_SCALE = 4.0  # He et al., sec. 4.6


class Adapter(Method):
    """Insert small networks into every layer and train them."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[Message] = Message(
        "small new networks next to frozen weights; 1e-4 to 1e-3 is usual for adapters"
    )

    variant: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """Position: after attention and after the MLP, after the MLP only, or parallel to the MLP."""
    bottleneck: int = Field(default=32, ge=1)
    """Bottleneck width M."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """Activation between the two linear layers."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Wrap the last layer of each MLP (houlsby: of each attention too) in an AdapterLinear."""
        model.requires_grad_(False)
        attention, mlp = sublayer_outputs(model)
        entrances = mlp_inputs(model, mlp) if self.variant == "parallel" else {}
        layers: dict[str, AdapterLinear] = {}
        for name in [*attention, *mlp] if self.variant == "houlsby" else mlp:
            layers[name] = AdapterLinear(model.get_submodule(name), self.bottleneck, self.activation)
            if entrances:
                layers[name].read_input_of(model.get_submodule(entrances[name]))
            model.set_submodule(name, layers[name])
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        return Attachment(trainable=trainable, set_enabled=make_set_enabled(layers))


class AdapterLinear(nn.Module):
    """A frozen linear layer followed by a bottleneck; or, in parallel, with a bottleneck on the MLP's input."""

    def __init__(self, base: nn.Module, bottleneck: int, activation: str) -> None:
        super().__init__()
        width, device = shape_of(base)[0], next(base.parameters()).device
        self.base_layer, self.on, self.parallel = base, True, False
        self.down = nn.Linear(width, bottleneck, device=device)
        self.up = nn.Linear(bottleneck, width, device=device)
        self.activation = ACT2FN[activation]
        self.mlp_input: list[Tensor] = []  # of the forward pass that runs now; a list, so that no module is registered
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    @property
    def weight(self) -> Any:
        """The frozen layer's own weight; some families read its dtype (T5)."""
        return self.base_layer.weight

    def factors(self) -> tuple[Tensor, Tensor]:
        """The bottleneck's two weights, [M, D] and [D, M]."""
        return self.down.weight, self.up.weight

    def read_input_of(self, entrance: nn.Module) -> None:
        """Run parallel to the MLP, on its input: what its first layer `entrance` receives."""
        self.parallel = True

        def store(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.mlp_input[:] = [inputs[0]]

        entrance.register_forward_pre_hook(store)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        if not self.on:
            return out
        if self.parallel:
            return out + PARALLEL_SCALE * self._bottleneck(self.mlp_input.pop())
        return out + self._bottleneck(out)

    def _bottleneck(self, x: Tensor) -> Tensor:
        down = torch.nn.functional.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype))
        return torch.nn.functional.linear(self.activation(down), self.up.weight.to(x.dtype), self.up.bias.to(x.dtype))
