"""Prefixes: trained keys and values before every row, in every layer, as in prefix tuning and P-tuning v2.

    layer l:   [K0 ... KP-1 | k0 k1 ...]      the queries of the row's tokens attend to both
               [V0 ... VP-1 | v0 v1 ...]

Virtual tokens come before every row; the layers that compute keys and values return the trained ones there, before the
rotary embedding is applied.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.method import Attachment
from weitiao.model.adapters.module_structure import OutputColumns, keys_and_values, last_hidden, layer_stack
from weitiao.model.adapters.peft_format import peft_task
from weitiao.model.adapters.virtual_tokens import VirtualTokenProjection, add_virtual_tokens, random_token_ids
from weitiao.model.layers.shape_trace import moved

Rotate = Callable[[Tensor, bool], Tensor]
"""(keys [P, K], whether to rotate them back) -> keys at positions 0 .. P - 1."""


class Prefix(nn.Module):
    """Keys and values [L, 2, P, K]: trained directly, or an initial value plus the output of a small network."""

    def __init__(self, initial: Tensor, width: int, encoder_hidden_size: int | None) -> None:
        super().__init__()
        self.initial = nn.Parameter(initial)
        self.embedding = self.mlp = None
        if encoder_hidden_size is not None:
            num_layers, _, length, key_width = initial.shape
            self.embedding = nn.Parameter(torch.randn(length, width, device=initial.device) * 0.02)
            hidden, out = nn.Linear(width, encoder_hidden_size), nn.Linear(encoder_hidden_size, num_layers * 2 * key_width)
            nn.init.zeros_(out.weight)
            nn.init.zeros_(out.bias)
            self.mlp = moved(nn.Sequential(hidden, nn.Tanh(), out), initial.device)

    def forward(self) -> Tensor:
        if self.mlp is None or self.embedding is None:
            return self.initial
        with torch.autocast(self.initial.device.type, enabled=False):
            num_layers, _, length, key_width = self.initial.shape
            change = self.mlp(self.embedding).view(length, num_layers, 2, key_width)
            return self.initial + change.permute(1, 2, 0, 3)


def attach_prefix(model: PreTrainedModel, length: int, encoder_hidden_size: int | None = None) -> Attachment:
    """Put a prefix into every layer.

    Args:
        encoder_hidden_size: width of the network that produces it; None: it is trained directly.
    """
    columns = keys_and_values(model)
    width = model.config.get_text_config().hidden_size
    prefix = Prefix(_keys_and_values_of_tokens(model, columns, length), width, encoder_hidden_size)
    virtual_tokens = add_virtual_tokens(model, length)
    model.add_module("prefix", prefix)
    computed: list[Tensor] = []  # the prefix of the current forward pass

    def value_of(layer: int, which: int) -> Callable[[], Tensor]:
        """Keys (which = 0) or values (1) of a layer. The network runs once per forward pass, at the first layer's keys."""

        def value() -> Tensor:
            if (layer, which) == (0, 0) or not computed:
                computed[:] = [prefix()]
            return computed[0][layer, which]

        return value

    for layer, key_and_value in enumerate(columns):
        # GPT-2 computes keys and values in one module, at different columns
        values: dict[str, dict[int, Callable[[], Tensor]]] = {}
        for which, output in enumerate(key_and_value):
            values.setdefault(output.layer, {})[output.start] = value_of(layer, which)
        for name, by_column in values.items():
            model.set_submodule(name, VirtualTokenProjection(model.get_submodule(name), virtual_tokens, by_column))
    rotate = _rotation(model, length)
    loads_peft = rotate is not None and encoder_hidden_size is None
    return Attachment(
        trainable={f"prefix.{name}" for name, _ in prefix.named_parameters()},
        virtual_tokens=lambda: virtual_tokens.ids,
        set_enabled=virtual_tokens.set_enabled,
        as_peft=(lambda: _to_peft(model, prefix(), rotate)) if rotate else None,
        from_peft=(lambda tensors: _from_peft(prefix, tensors, rotate)) if rotate and loads_peft else None,
    )


@torch.no_grad()
def _keys_and_values_of_tokens(
    model: PreTrainedModel, columns: list[tuple[OutputColumns, OutputColumns]], length: int
) -> Tensor:
    """[L, 2, P, K] fp32: the model's own keys and values of random tokens.

    Li & Liang (sec. 7.5) found that prefixes initialized from the activations of real words learn best.
    """
    embedding: Any = model.get_input_embeddings()
    ids = random_token_ids(embedding.num_embeddings, length).to(embedding.weight.device)
    outputs: dict[str, Tensor] = {}

    def store_as(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output

        return store

    layers = {output.layer for pair in columns for output in pair}
    hooks = [model.get_submodule(name).register_forward_hook(store_as(name)) for name in layers]
    try:
        last_hidden(model, input_ids=ids[None])
    finally:
        for hook in hooks:
            hook.remove()
    cut = [[outputs[x.layer][0, :, x.start : x.start + x.width].float() for x in pair] for pair in columns]
    return torch.stack([torch.stack(pair) for pair in cut])


def _rotation(model: PreTrainedModel, length: int) -> Rotate | None:
    """How the model's rotary embedding turns a prefix's keys: PEFT stores them after it, we before it.

    Returns:
        None: the family changes keys in another way too (a norm, a partial rotation), so PEFT's format does not apply.
    """
    stack, config = layer_stack(model), model.config.get_text_config()
    if any(name.endswith("k_norm") for name, _ in model.named_modules()):
        return None
    if not hasattr(stack, "rotary_emb"):
        return lambda keys, back: keys
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def rotate(keys: Tensor, back: bool) -> Tensor:
        positions = torch.arange(length, device=keys.device)[None]
        cos, sin = (x[0].float()[:, None] for x in stack.rotary_emb(keys.float(), positions))  # [P, 1, d]
        x = keys.unflatten(-1, (-1, head_dim))  # [P, H, d]
        rotated_half = torch.cat([-x[..., head_dim // 2 :], x[..., : head_dim // 2]], -1)
        return (x * cos + rotated_half * (-sin if back else sin)).flatten(1)

    probe = stack.rotary_emb(torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))[0]
    return rotate if probe.shape[-1] == head_dim else None


def _to_peft(model: PreTrainedModel, prefix: Tensor, rotate: Rotate) -> tuple[dict[str, Any], dict[str, Tensor]]:
    prefix = prefix.detach()
    num_layers, _, length, key_width = prefix.shape
    rotated = torch.stack([torch.stack([rotate(keys, False), values]) for keys, values in prefix])  # [L, 2, P, K]
    text_config = model.config.get_text_config()
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": peft_task(model),
        "num_virtual_tokens": length,
        "token_dim": key_width,
        "num_transformer_submodules": 1,
        "num_attention_heads": getattr(text_config, "num_key_value_heads", None) or text_config.num_attention_heads,
        "num_layers": num_layers,
        "encoder_hidden_size": None,
        "prefix_projection": False,
        "inference_mode": True,
    }
    return config, {"prompt_embeddings": rotated.permute(2, 0, 1, 3).reshape(length, -1)}


def _from_peft(prefix: Prefix, tensors: dict[str, Tensor], rotate: Rotate) -> None:
    num_layers, _, length, key_width = prefix.initial.shape
    rotated = tensors["prompt_embeddings"].view(length, num_layers, 2, key_width).permute(1, 2, 0, 3)
    prefix.initial.data.copy_(torch.stack([torch.stack([rotate(keys, True), values]) for keys, values in rotated]))
