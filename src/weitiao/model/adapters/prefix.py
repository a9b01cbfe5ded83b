"""Prefixes: keys and values before every row, in every layer, learnt. Deep prompts, as prefix tuning and P-tuning v2.

    layer l:   [K0 ... KP-1 | k0 k1 ...]      Q of the row's tokens looks at both
               [V0 ... VP-1 | v0 v1 ...]

Slots stand before every row; the layers that make keys and values give the learnt ones there, before the rotary turn.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.method import Attachment
from weitiao.model.adapters.module_structure import Columns, keys_and_values, last_hidden, stack_of
from weitiao.model.adapters.peft_format import peft_task
from weitiao.model.adapters.surgery import set_submodule
from weitiao.model.adapters.virtual_tokens import VirtualTokenProjection, add_virtual_tokens, some_words

Turn = Callable[[Tensor, bool], Tensor]
"""Keys [P, K], and whether to turn them back."""


class Prefix(nn.Module):
    """() -> keys and values [L, 2, P, K]: where they started, and what a network adds to them (reparametrised)."""

    def __init__(self, start: Tensor, width: int, hidden: int | None) -> None:
        super().__init__()
        self.start = nn.Parameter(start)
        self.embedding = self.mlp = None
        if hidden is not None:
            layers, _, length, wide = start.shape
            self.embedding = nn.Parameter(torch.randn(length, width, device=start.device) * 0.02)
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, layers * 2 * wide))
            self.mlp.to(start.device)
            nn.init.zeros_(self.mlp[2].weight), nn.init.zeros_(self.mlp[2].bias)  # pyright: ignore

    def forward(self) -> Tensor:
        if self.mlp is None or self.embedding is None:
            return self.start
        with torch.autocast(self.start.device.type, enabled=False):
            layers, two, length, wide = self.start.shape
            return self.start + self.mlp(self.embedding).view(length, layers, two, wide).permute(1, 2, 0, 3)


def attach_prefix(model: Any, length: int, hidden: int | None = None) -> Attachment:
    """Put a prefix into every layer.

    Args:
        hidden: width of the network that makes it; None: it is learnt itself.
    """
    places = keys_and_values(model)
    prefix = Prefix(_keys_and_values_of_words(model, places, length), model.config.get_text_config().hidden_size, hidden)
    virtual_tokens = add_virtual_tokens(model, length)
    model.add_module("prefix", prefix)
    made: list[Tensor] = []

    def now(layer: int, which: int) -> Callable[[], Tensor]:
        def value() -> Tensor:
            if (layer, which) == (0, 0) or not made:  # once a forward pass, at its first layer
                made[:] = [prefix()]
            return made[0][layer, which]

        return value

    for layer, (key, value) in enumerate(places):
        learnt = {where.layer: {} for where in (key, value)}
        for which, where in enumerate((key, value)):
            learnt[where.layer][where.begin] = now(layer, which)
        for name, columns in learnt.items():
            set_submodule(model, name, VirtualTokenProjection(model.get_submodule(name), virtual_tokens, columns))
    turn = _rotary(model, length)
    return Attachment(
        trainable={f"prefix.{name}" for name, _ in prefix.named_parameters()},
        virtual_tokens=lambda: virtual_tokens.ids,
        set_enabled=virtual_tokens.set_enabled,
        as_peft=(lambda: _to_peft(model, prefix(), turn)) if turn else None,
        from_peft=(lambda tensors: _from_peft(prefix, tensors, turn)) if turn and hidden is None else None,
    )


@torch.no_grad()
def _keys_and_values_of_words(model: Any, places: list[tuple[Columns, Columns]], length: int) -> Tensor:
    """[L, 2, P, K] fp32: what the model itself makes of words drawn at random. Li & Liang (sec. 7.5) found that prefixes
    which start from activations of real words learn best."""
    embedding = model.get_input_embeddings()
    ids = some_words(embedding.num_embeddings, length).to(embedding.weight.device)
    seen: dict[str, Tensor] = {}
    names = {where.layer for pair in places for where in pair}
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, out, name=name: seen.update({name: out}))
        for name in names
    ]
    try:
        last_hidden(model, input_ids=ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    cut = [[seen[w.layer][0, :, w.begin : w.begin + w.width].float() for w in pair] for pair in places]
    return torch.stack([torch.stack(pair) for pair in cut])


def _rotary(model: Any, length: int) -> Turn | None:
    """Keys [P, K] at positions 0 .. P-1, turned as the model turns them (or back again): PEFT stores turned keys. None
    where the family does something else with keys as well (a norm, a partial turn)."""
    inner, config = stack_of(model), model.config.get_text_config()
    if any(name.endswith("k_norm") for name, _ in model.named_modules()):
        return None
    if not hasattr(inner, "rotary_emb"):
        return lambda keys, back: keys
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def turn(keys: Tensor, back: bool) -> Tensor:
        at = torch.arange(length, device=keys.device)[None]
        cos, sin = (x[0].float()[:, None] for x in inner.rotary_emb(keys.float(), at))  # [P, 1, d]
        x = keys.unflatten(-1, (-1, width))  # [P, H, d]
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return (x * cos + half * (-sin if back else sin)).flatten(1)

    probe = inner.rotary_emb(torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))[0]
    return turn if probe.shape[-1] == width else None


def _to_peft(model: Any, prefix: Tensor, turn: Turn) -> tuple[dict[str, Any], dict[str, Tensor]]:
    prefix = prefix.detach()
    layers, _, length, wide = prefix.shape
    turned = torch.stack([torch.stack([turn(keys, False), values]) for keys, values in prefix])  # [L, 2, P, K]
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    about = {
        "peft_type": "PREFIX_TUNING",
        "task_type": peft_task(model),
        "num_virtual_tokens": length,
        "token_dim": wide,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": layers,
        "encoder_hidden_size": None,
        "prefix_projection": False,
        "inference_mode": True,
    }
    return about, {"prompt_embeddings": turned.permute(2, 0, 1, 3).reshape(length, -1)}


def _from_peft(prefix: Prefix, tensors: dict[str, Tensor], turn: Turn) -> None:
    layers, _, length, wide = prefix.start.shape
    stored = tensors["prompt_embeddings"].view(length, layers, 2, wide).permute(1, 2, 0, 3)
    back = torch.stack([torch.stack([turn(keys, True), values]) for keys, values in stored])
    prefix.start.data.copy_(back)
