"""Freeze the lower layers and train the upper ones (or the weights that `pattern` names) in place.

Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", arXiv 1801.06146, sec. 3.2-3.3:

    embedding . . . . . . . frozen          rate of layer l = rate * layer_lr_decay ^ (trained layers above it)
    layer 0 ... L-k-1 . . . frozen          unfreeze_every: one more layer, from the top, every so many steps
    layer L-k ... L-1, norm trained         (the paper's discriminative fine-tuning and gradual unfreezing)

There is no backward pass below the lowest trained layer, so training is fast. The embedding stays frozen by default; an
output head that is tied to it stays frozen with it.
"""

import re
from typing import Any, ClassVar

from pydantic import Field
from torch import nn
from transformers import PreTrainedModel

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.core.trainable_model import layer_of


class Freeze(Method):
    """Train the top layers in full; freeze all layers below."""

    learning_rate: ClassVar[float] = 5e-5
    learning_rate_reason: ClassVar[Message] = Message(
        "whole layers are trained, but few of them: slightly above the rate of full fine-tuning"
    )
    trains_base: ClassVar[bool] = True

    num_layers: int = Field(default=2, ge=1)
    """Number of top layers to train, with the final norm and an untied head."""
    pattern: str | None = None
    """Instead of num_layers: a regular expression for full weight names; layers 4 to 7 are .*\\.layers\\.[4-7]\\..*"""
    embedding: bool = False
    """Also train the token embedding (and a head tied to it)."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """A layer's learning rate is multiplied by this once per trained layer above it; ULMFiT uses 1 / 2.6."""
    unfreeze_every: int | None = Field(default=None, ge=1)
    """Start with the top layer only and unfreeze the next one after every so many steps."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Make the selected weights trainable, in place."""
        model.requires_grad_(False)
        weights = dict(model.named_parameters())
        trainable = self._select(model, weights)
        for name in trainable:
            weights[name].requires_grad_(True)
        depths = {name: _depth(name, trainable) for name in trainable}

        def groups(step: int) -> list[dict[str, Any]]:
            by_kind: dict[tuple[int, bool], list[str]] = {}  # (depth, is a vector: biases and norms do not decay)
            for name in sorted(trainable):
                by_kind.setdefault((depths[name], weights[name].ndim < 2), []).append(name)
            return [
                {"names": names, "rate": self.layer_lr_decay**depth, **({"weight_decay": 0.0} if is_vector else {})}
                for (depth, is_vector), names in sorted(by_kind.items())
            ]

        def unfreeze(step: int) -> None:
            assert self.unfreeze_every is not None
            for name in trainable:
                weights[name].requires_grad_(depths[name] <= step // self.unfreeze_every)

        return Attachment(
            trainable=trainable,
            groups=groups,
            merge=lambda: None,
            before_step=unfreeze if self.unfreeze_every else None,
        )

    def _select(self, model: Any, weights: dict[str, nn.Parameter]) -> set[str]:
        """Names of the weights to train."""
        embedding = model.get_input_embeddings().weight
        if self.pattern is not None:
            matching = {name for name in weights if re.fullmatch(self.pattern, name)}
            if not matching:
                raise RecipeError(
                    "method.pattern: no weight name matches {pattern!r}; an example of a name is {name}.",
                    pattern=self.pattern,
                    name=next(iter(weights)),
                )
            return matching
        num_layers = 1 + max((layer for name in weights if (layer := layer_of(name)) is not None), default=-1)
        if self.num_layers > num_layers:
            raise RecipeError(
                "method.num_layers: the model has {num_layers} layers; it is not possible to train {requested}.",
                num_layers=num_layers,
                requested=self.num_layers,
            )
        lowest = num_layers - self.num_layers
        selected = set()
        for name, weight in weights.items():
            layer = layer_of(name)
            is_top = layer >= lowest if layer is not None else weight is not embedding and not _is_position(name)
            if is_top or (self.embedding and weight is embedding):
                selected.add(name)
        return selected


def _depth(name: str, trainable: set[str]) -> int:
    """How many trained layers are above this weight; 0 for the final norm and the head, all of them for the embedding."""
    layers = sorted({layer for n in trainable if (layer := layer_of(n)) is not None}, reverse=True)
    layer = layer_of(name)
    if layer is None:
        return len(layers) if "emb" in name or "wte" in name else 0
    return layers.index(layer)


def _is_position(name: str) -> bool:
    """Position embeddings (GPT-2's wpe, BERT's embeddings) belong to the bottom of the model too."""
    return "wpe" in name or "emb" in name
