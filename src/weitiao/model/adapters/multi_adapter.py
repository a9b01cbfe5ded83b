"""Several adapters side by side on one base, and every row of a batch goes through its own.

    rows         a a a a | b b b | a a | c c c c         a -> spam   b -> chat   c -> the base alone
    for all      y = x W^T + bias                        one product for the whole batch
    for each     y_g <- y_g + s (x_g A^T) B^T            on the rows of its group g (index_select, index_copy)

Sheng et al. 2023, "S-LoRA", arXiv 2311.03285, sec. 4 and 5: the base is batched over all adapters, each change is
computed on the rows that want it. Rows are segments laid end to end, [T, D], or rows of a padded batch, [B, T, D], as
transformers' `generate` has them. Outside `Attachment.route`, every row goes to the base.
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
from weitiao.model.adapters.surgery import enabling, set_submodule


@dataclass(frozen=True)
class Route:
    """Which rows go where: along the first dimension of a layer's input."""

    places: Mapping[str, Tensor]
    """An adapter's name -> where its rows (or, end to end, its tokens) are."""
    size: int
    """How many there are in all."""
    packed: bool


_route: ContextVar[Route | None] = ContextVar("route", default=None)


class MultiAdapterLinear(nn.Module):
    """Stands in the place of a linear layer that several adapters change."""

    def __init__(self, base: nn.Module, adapters: Mapping[str, LowRankLinear]) -> None:
        super().__init__()
        self.base_layer, self.on = base, True
        self.adapters = nn.ModuleDict({f"{i}": module for i, module in enumerate(adapters.values())})
        self.names = tuple(adapters)

    def forward(self, x: Tensor) -> Tensor:
        y, select_adapter = self.base_layer(x), _route.get()
        if select_adapter is None or not self.on:
            return y
        rows, out = (x.flatten(0, -2), y.flatten(0, -2)) if select_adapter.packed else (x, y)
        if len(rows) != select_adapter.size or rows.ndim != (2 if select_adapter.packed else 3):
            words = f"a layer was given {list(x.shape)} and {select_adapter.size} rows were expected"
            raise ModelError(f"adapters cannot be switched in one batch in this family ({words}): ask one at a time.")
        for name, module in zip(self.names, self.adapters.values()):
            at = select_adapter.places.get(name)
            if at is not None:
                out = out.index_copy(0, at, module.forward_from(rows[at], out[at]))  # pyright: ignore[reportCallIssue]
        return out.view(y.shape)


def detach(
    model: nn.Module, attachment: Attachment, method: Method | type[Method], called: str
) -> dict[str, LowRankLinear]:
    """Take a method off the model again, which is then the base model: its layers, by the names of those they stood for.

    Raises:
        ModelError: it has changed something besides, or in another way than these layers do.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    inside = {f"{name}.{own}" for name, module in found.items() for own in module.own}
    plain_base = method.starts_at_base and not method.rounds_base  # else the others would stand on changed weights
    if not found or attachment.trainable != inside or not plain_base:
        raise ModelError(f"{called} is no low-rank change of linear layers alone (lora, dora): only those go by row.")
    for name, module in found.items():
        set_submodule(model, name, module.base_layer)
    return found


def attach_all(model: nn.Module, adapters: Mapping[str, Mapping[str, LowRankLinear]]) -> Attachment:
    """Put what was taken off back on, all of it beside one another.

    Args:
        adapters: an adapter's name -> its layers.
    """
    places = dict.fromkeys(place for layers in adapters.values() for place in layers)
    made = {}
    for place in places:
        here = {name: layers[place] for name, layers in adapters.items() if place in layers}
        made[place] = MultiAdapterLinear(model.get_submodule(place), here)
        set_submodule(model, place, made[place])
    model.requires_grad_(False)

    @contextmanager
    def select_adapter(names: Sequence[str], lengths: Sequence[int] | None = None) -> Iterator[None]:
        odd = sorted(set(names) - {"", *adapters})
        if odd:
            raise ModelError(f"there is no adapter called {odd[0]!r}; there are: {', '.join(adapters)}.")
        device = next(model.parameters()).device
        index = {name: i for i, name in enumerate(adapters)}
        which = torch.tensor([index.get(name, -1) for name in names], device=device)
        if lengths is not None:
            which = which.repeat_interleave(torch.tensor(lengths, device=device))
        at = {name: (which == i).nonzero()[:, 0] for name, i in index.items() if name in names}
        token = _route.set(Route(at, len(which), lengths is not None))
        try:
            yield
        finally:
            _route.reset(token)

    return Attachment(trainable=set(), set_enabled=enabling(made), select_adapter=select_adapter)
