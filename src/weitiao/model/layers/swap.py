"""Replaces modules of a loaded model by equivalent ones that are faster, whatever the family.

nn.Dropout                        the same probability, 16 random bits per element                       (dropout.py)
nn.Linear                         the same, fast with few rows while text is generated                     (few_rows.py)
GELU by tanh, written in parts    torch's own in one pass: saves five products and a power (GPT-2, T5 v1.1, ALBERT ...)
"""

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from weitiao.model.layers.dropout import Dropout
from weitiao.model.layers.few_rows import Linear


def replace_modules(model: nn.Module) -> None:
    """In place; weights and their names do not change."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Dropout:
                setattr(parent, name, Dropout(module.p).train(module.training))
            elif type(module) is nn.Linear:
                module.__class__ = Linear
            elif isinstance(module, (NewGELUActivation, FastGELUActivation)):
                setattr(parent, name, nn.GELU("tanh"))
