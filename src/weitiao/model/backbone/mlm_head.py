"""The masked-LM head of an encoder: hidden states to token logits, through the token embedding.

Devlin et al. 2019, arXiv 1810.04805, sec. 3.1, as in BERT's code:

    x = LayerNorm(act(W h + c))     [N, D] -> [N, E]
    logits = x E^T + b              [N, V]      E is the token embedding itself (tied), never a copy

Most checkpoints contain W, c, the norm and b, under names of their family; otherwise they are initialized.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision
from weitiao.core.messages import Message

LAYOUTS = (  # the dense layer, the norm, the bias
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),  # BERT
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),  # RoBERTa, MPNet
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),  # DistilBERT
    ("head.dense", "head.norm", "decoder.bias"),  # ModernBERT
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),  # ELECTRA
    ("predictions.dense", "predictions.LayerNorm", "predictions.bias"),  # ALBERT
)
TENSORFLOW_NAMES = {"weight": "gamma", "bias": "beta"}  # of a norm's parameters, in old checkpoints
KEY = "model.mlm_head"


class MaskedHead(nn.Module):
    """The head up to the product with the token embedding [V, E], which belongs to the model."""

    tied = True

    def __init__(self, width: int, embedding_width: int, vocab_size: int, activation: str, eps: float) -> None:
        super().__init__()
        self.dense, self.activation = nn.Linear(width, embedding_width), ACT2FN[activation]
        self.norm, self.bias = nn.LayerNorm(embedding_width, eps), nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, E]"""
        return self.norm(self.activation(self.dense(hidden.to(self.dense.weight.dtype))))


def masked_head(model: PreTrainedModel, folder: Path | None = None) -> tuple[MaskedHead, Decision]:
    """An encoder's masked-LM head.

    Args:
        folder: of the checkpoint, whose head is used if it has one.

    Raises:
        ModelError: the model's output embedding is not its input embedding.
    """
    config: Any = model.config
    if not getattr(config, "tie_word_embeddings", True):
        raise ModelError(
            "base: its config says tie_word_embeddings: false; only masked-LM heads tied to the token embedding "
            "are supported"
        )
    activations = (getattr(config, key, None) for key in ("classifier_activation", "hidden_act", "activation"))
    activation = next((x for x in activations if isinstance(x, str)), "gelu")
    eps = getattr(config, "layer_norm_eps", None) or getattr(config, "norm_eps", None) or 1e-12
    embedding: Any = model.get_input_embeddings()
    vocab_size, embedding_width = embedding.weight.shape
    head = MaskedHead(config.hidden_size, embedding_width, vocab_size, activation, eps)
    stored = stored_head(folder) if folder else {}
    is_complete = stored.keys() >= {"dense.weight", "norm.weight"}
    if not is_complete or stored["dense.weight"].shape != head.dense.weight.shape:
        return head, Decision(KEY, "new", Message("the checkpoint has no masked-LM head: initialized at random"))
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if name in stored:
                weight[: len(stored[name])].copy_(stored[name])  # an added token's bias stays zero
    return head, Decision(KEY, "checkpoint", Message("stored in the encoder's checkpoint"))


def stored_head(folder: Path) -> dict[str, Tensor]:
    """The head's weights in a folder of safetensors, by MaskedHead's names; {} if there are none."""
    file_of = dict(_stored_names(folder))
    for dense, norm, bias in LAYOUTS:
        if f"{dense}.weight" not in file_of:
            continue
        stored_names = {"dense.weight": f"{dense}.weight", "dense.bias": f"{dense}.bias", "bias": bias}
        for name, old_name in TENSORFLOW_NAMES.items():
            is_old = f"{norm}.{name}" not in file_of
            stored_names[f"norm.{name}"] = f"{norm}.{old_name}" if is_old else f"{norm}.{name}"
        return {name: _read(file_of[stored], stored) for name, stored in stored_names.items() if stored in file_of}
    return {}


def _stored_names(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "pt") as opened:
            yield from ((name, file) for name in opened.keys())  # noqa: SIM118


def _read(file: Path, name: str) -> Tensor:
    with safe_open(str(file), "pt") as opened:
        return opened.get_tensor(name)
