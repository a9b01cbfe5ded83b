"""An encoder's masked-LM head: hidden states to words, through the token embedding.

Devlin et al. 2019, arXiv 1810.04805, sec. 3.1, as BERT's code has it:

    x = LayerNorm(act(W h + c))     [N, D] -> [N, E]
    logits = x E^T + b              [N, V]      E is the token embedding itself (tied), never a copy

The checkpoint often holds W, c, the norm and b under names of its family's own; where it does not, they are made new.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.activations import ACT2FN

from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision

LAYOUTS = (  # the dense layer, the norm, the bias
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),  # BERT
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),  # RoBERTa, MPNet
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),  # DistilBERT
    ("head.dense", "head.norm", "decoder.bias"),  # ModernBERT
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),  # ELECTRA
    ("predictions.dense", "predictions.LayerNorm", "predictions.bias"),  # ALBERT
)
OLD = {"weight": "gamma", "bias": "beta"}  # what a norm's weights are called in checkpoints of TensorFlow's time


class MaskedHead(nn.Module):
    """All of the head but the product with the token embedding [V, E], which belongs to the model."""

    tied = True

    def __init__(self, width: int, embedded: int, vocabulary: int, activation: str, eps: float) -> None:
        super().__init__()
        self.dense, self.activation = nn.Linear(width, embedded), ACT2FN[activation]
        self.norm, self.bias = nn.LayerNorm(embedded, eps), nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, E]"""
        return self.norm(self.activation(self.dense(hidden.to(self.dense.weight.dtype))))


def masked_head(model: Any, folder: Path | None = None) -> tuple[MaskedHead, Decision]:
    """The head that belongs to an encoder, from the checkpoint in `folder` if that holds it; and which it was.

    Raises:
        ModelError: the model's output words are not its input words.
    """
    config = model.config
    if not getattr(config, "tie_word_embeddings", True):
        raise ModelError("base: its config says tie_word_embeddings: false; only a masked-LM head that is tied is known.")
    known = ("classifier_activation", "hidden_act", "activation")
    activation = next((name for key in known if isinstance(name := getattr(config, key, None), str)), "gelu")
    eps = getattr(config, "layer_norm_eps", None) or getattr(config, "norm_eps", None) or 1e-12
    words = model.get_input_embeddings()
    size, embedded = words.weight.shape
    head = MaskedHead(config.hidden_size, embedded, size, activation, eps)
    found = stored_head(folder) if folder else {}
    fits = found.keys() >= {"dense.weight", "norm.weight"} and found["dense.weight"].shape == head.dense.weight.shape
    if not fits:
        return head, Decision("masked-LM head", "new", "the checkpoint holds none, so it begins at random")
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if name in found:
                weight[: len(found[name])].copy_(found[name])
    return head, Decision("masked-LM head", "the checkpoint's", "stored with the encoder")


def stored_head(folder: Path) -> dict[str, Tensor]:
    """The head's weights in a folder of safetensors, by our names; {} where there are none."""
    there = dict(_names(folder))
    for dense, norm, bias in LAYOUTS:
        if f"{dense}.weight" in there:
            theirs = {f"dense.{kind}": f"{dense}.{kind}" for kind in OLD} | {"bias": bias}
            for kind, old in OLD.items():
                theirs[f"norm.{kind}"] = f"{norm}.{kind}" if f"{norm}.{kind}" in there else f"{norm}.{old}"
            return {ours: _read(there[name], name) for ours, name in theirs.items() if name in there}
    return {}


def _names(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            yield from ((name, file) for name in opened.keys())  # noqa: SIM118


def _read(file: Path, name: str) -> Tensor:
    with safe_open(str(file), "pt") as opened:
        return opened.get_tensor(name)
