"""Several adapters on one base model; each row of a batch goes through its own.

    rows              a a a a | b b b | a a | c c c c      a -> spam   b -> chat   c -> the base model
    all rows          y = x W^T + bias                     one product for the whole batch
    adapter g         y_g <- y_g + s (x_g A^T) B^T         on its own rows (index_select, index_copy)

Sheng et al. 2023, "S-LoRA", arXiv 2311.03285, sec. 4 and 5: the base runs once for all adapters, each change on its own
rows. Rows are segments packed end to end, [T, D], or rows of a padded batch, [B, T, D], as in transformers' `generate`.
Outside `Attachment.adapters_by_row`, every row goes through the base model.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.low_rank import LowRankLinear
from weitiao.model.adapters.module_replacement import make_set_enabled


@dataclass(frozen=True)
class Routing:
    """Which rows go through which adapter, along the first dimension of a layer's input."""

    rows: Mapping[str, Tensor]
    """Adapter -> its rows; of a packed batch, its tokens."""
    num_rows: int
    packed: bool


_routing: ContextVar[Routing | None] = ContextVar("routing", default=None)


class MultiAdapterLinear(nn.Module):
    """A linear layer with the low-rank changes of several adapters."""

    def __init__(self, base: nn.Module, adapters: Mapping[str, LowRankLinear]) -> None:
        super().__init__()
        self.base_layer, self.on = base, True
        self.adapters = nn.ModuleDict({f"{i}": layer for i, layer in enumerate(adapters.values())})
        self.names = tuple(adapters)  # a name may have dots, which a ModuleDict's keys may not

    def forward(self, x: Tensor) -> Tensor:
        y, routing = self.base_layer(x), _routing.get()
        if routing is None or not self.on:
            return y
        # a padded batch keeps its rows apart; packed tokens may come as [1, T, D] or [T, D]
        inputs, outputs = (x.flatten(0, -2), y.flatten(0, -2)) if routing.packed else (x, y)
        if len(inputs) != routing.num_rows or inputs.ndim != (2 if routing.packed else 3):
            raise ModelError(
                "this model's layers do not keep a batch's rows apart (a layer got shape {shape} instead of {num_rows} "
                "rows), so adapters cannot be mixed in one batch: use one at a time",
                shape=list(x.shape),
                num_rows=routing.num_rows,
            )
        for name, layer in zip(self.names, self.adapters.values()):
            rows = routing.rows.get(name)
            if rows is not None:
                assert isinstance(layer, LowRankLinear)
                outputs = outputs.index_copy(0, rows, layer.forward_from(inputs[rows], outputs[rows]))
        return outputs.view(y.shape)


def detach(model: nn.Module, attachment: Attachment, method: Method | type[Method], name: str) -> dict[str, LowRankLinear]:
    """Remove a low-rank method from the model, which then is the base model again.

    Args:
        name: the adapter's, for the message.

    Returns:
        The method's layers, by the names of the base layers that are back in their place.

    Raises:
        ModelError: the method changed anything else.
    """
    layers = {x: layer for x, layer in model.named_modules() if isinstance(layer, LowRankLinear)}
    own_parameters = {f"{x}.{parameter}" for x, layer in layers.items() for parameter in layer.own_parameters}
    same_base = method.starts_at_base and not method.rounds_base  # other adapters must see the original base weights
    if not layers or attachment.trainable != own_parameters or not same_base:
        raise ModelError(
            "{name} is not only a low-rank change of linear layers (lora, dora), so it cannot share batches with other "
            "adapters",
            name=name,
        )
    for layer_name, layer in layers.items():
        model.set_submodule(layer_name, layer.base_layer)
    return layers


def attach_all(model: nn.Module, adapters: Mapping[str, Mapping[str, LowRankLinear]]) -> Attachment:
    """Attach several detached adapters at once.

    Args:
        adapters: a name for each -> its layers, from `detach`.
    """
    merged_layers: dict[str, MultiAdapterLinear] = {}
    for layer_name in dict.fromkeys(x for layers in adapters.values() for x in layers):
        changes = {name: layers[layer_name] for name, layers in adapters.items() if layer_name in layers}
        merged_layers[layer_name] = MultiAdapterLinear(model.get_submodule(layer_name), changes)
        model.set_submodule(layer_name, merged_layers[layer_name])
    model.requires_grad_(False)
    index = {name: i for i, name in enumerate(adapters)}

    @contextmanager
    def select_adapter(names: Sequence[str], lengths: Sequence[int] | None = None) -> Iterator[None]:
        if unknown := sorted(set(names) - {"", *adapters}):
            raise ModelError(
                "there is no adapter called {name!r}; there are: {adapters}", name=unknown[0], adapters=", ".join(adapters)
            )
        device = next(model.parameters()).device
        adapter_of_row = torch.tensor([index.get(name, -1) for name in names], device=device)
        if lengths is not None:
            adapter_of_row = adapter_of_row.repeat_interleave(torch.tensor(lengths, device=device))
        rows = {name: (adapter_of_row == i).nonzero()[:, 0] for name, i in index.items() if name in names}
        token = _routing.set(Routing(rows, len(adapter_of_row), lengths is not None))
        try:
            yield
        finally:
            _routing.reset(token)

    return Attachment(trainable=set(), set_enabled=make_set_enabled(merged_layers), select_adapter=select_adapter)
