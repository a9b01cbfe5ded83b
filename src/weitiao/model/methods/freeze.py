"""Freeze the bottom, train the top: the highest layers (or those you name) are tuned fully, the rest stays as it is.

Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", arXiv 1801.06146, sec. 3.2-3.3:

    embedding . . . . . . . frozen          rate of layer l = rate * decay ^ (layers above it)     (discriminative)
    layer 0 ... L-k-1 . . . frozen          one more layer from the top every so many steps        (gradual unfreezing)
    layer L-k ... L-1, norm trained

Nothing below the lowest trained layer is differentiated, so it is fast. The embedding stays frozen unless asked for; an
output head that is tied to it stays with it.
"""

import re
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from weitiao.core.errors import RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.core.trainable_model import layer_of


class Freeze(Method):
    """Train the top layers fully; freeze what lies below."""

    learning_rate: ClassVar[float] = 5e-5
    learning_rate_reason: ClassVar[str] = "whole layers move, but few of them: a little above full fine-tuning's rate"
    trains_base: ClassVar[bool] = True

    num_layers: int = Field(default=2, ge=1)
    """How many of the highest layers are trained, with the last norm and an untied head."""
    pattern: str | None = None
    """A regular expression for whole weight names instead: layers 4 to 7 are .*\\.layers\\.[4-7]\\..*"""
    embedding: bool = False
    """Train the token embedding (and a head tied to it) too."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """A layer's rate is this to the power of how many trained layers lie above it; ULMFiT took 1 / 2.6."""
    unfreeze_every: int | None = Field(default=None, ge=1)
    """Begin with the highest trained layer, and add the next one after every so many steps."""

    def attach(self, model: nn.Module) -> Attachment:
        """Chosen weights are trained in place."""
        model.requires_grad_(False)
        weights = dict(model.named_parameters())
        chosen = self._chosen(model, weights)
        for name in chosen:
            weights[name].requires_grad_(True)
        above = {name: self._above(name, chosen) for name in chosen}

        def groups(step: int) -> list[dict[str, Any]]:
            kinds = sorted({(above[name], weights[name].ndim < 2) for name in chosen})
            made = []
            for depth, vectors in kinds:
                names = sorted(n for n in chosen if (above[n], weights[n].ndim < 2) == (depth, vectors))
                made.append(
                    {"names": names, "rate": self.layer_lr_decay**depth, **({"weight_decay": 0.0} if vectors else {})}
                )
            return made

        def thaw(step: int) -> None:
            assert self.unfreeze_every is not None
            for name in chosen:
                weights[name].requires_grad_(above[name] <= step // self.unfreeze_every)

        return Attachment(
            trainable=chosen,
            groups=groups,
            merge=lambda: None,
            before_step=thaw if self.unfreeze_every else None,
        )

    def _chosen(self, model: Any, weights: dict[str, nn.Parameter]) -> set[str]:
        embedding = model.get_input_embeddings().weight
        if self.pattern is not None:
            chosen = {name for name in weights if re.fullmatch(self.pattern, name)}
            if not chosen:
                one = next(iter(weights))
                raise RecipeError(f"method.pattern: no weight matches {self.pattern!r}; one is called {one}.")
            return chosen
        many = 1 + max((layer for name in weights if (layer := layer_of(name)) is not None), default=-1)
        if self.num_layers > many:
            raise RecipeError(f"method.layers: the model has {many} layers, so {self.num_layers} cannot be trained.")
        lowest = many - self.num_layers
        chosen = set()
        for name, weight in weights.items():
            layer = layer_of(name)
            top = layer >= lowest if layer is not None else weight is not embedding and not _is_position(name)
            if top or (self.embedding and weight is embedding):
                chosen.add(name)
        return chosen

    def _above(self, name: str, chosen: set[str]) -> int:
        """How many trained layers lie above this weight; norm and head lie above all, the embedding below all."""
        layers = sorted({layer for n in chosen if (layer := layer_of(n)) is not None}, reverse=True)
        layer = layer_of(name)
        if layer is None:
            return len(layers) if "emb" in name or "wte" in name else 0
        return layers.index(layer)


def _is_position(name: str) -> bool:
    """Position embeddings (GPT-2's wpe, BERT's embeddings) lie at the bottom too."""
    return "wpe" in name or "emb" in name
