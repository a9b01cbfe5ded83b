"""Modules that have an equal at less cost: in a loaded model each is exchanged for it, whatever the family.

nn.Dropout                        the same shares, sixteen random bits an element         (dropout.py)
GELU by tanh, written in parts    torch's own in one pass: five products and a power less (GPT-2, T5 v1.1, ALBERT ...)
"""

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from weitiao.model.layers.dropout import Dropout


def replace_modules(model: nn.Module) -> None:
    """In place; weights and their names stay."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.Dropout:
                setattr(parent, name, Dropout(module.p).train(module.training))
            elif isinstance(module, (NewGELUActivation, FastGELUActivation)):
                setattr(parent, name, nn.GELU("tanh"))
