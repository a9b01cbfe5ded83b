"""Compute in fp32 with weights that are stored in 16 bits: each module's weights are fp32 only while it runs.

    stored bf16 --before a module--> fp32 --its forward pass--> y in fp32 --after--> stored bf16

The results are those of a model loaded in fp32, bit for bit (bf16 and fp16 are subsets of fp32), at the memory of the
stored model and one module.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LOW_PRECISION = (torch.bfloat16, torch.float16)


def is_stored_low(model: nn.Module) -> bool:
    """Whether some weights are stored in 16 bits."""
    return any(x.dtype in LOW_PRECISION for x in model.parameters())


@contextmanager
def computing_in_fp32(model: nn.Module) -> Iterator[None]:
    """Inside, modules whose own weights are stored in 16 bits use them in fp32."""
    stored: dict[int, list[tuple[Any, Tensor]]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        own = [(x, x.data) for x in module.parameters(recurse=False) if x.dtype in LOW_PRECISION]
        stored[id(module)] = own
        for weight, _data in own:
            weight.data = weight.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for weight, data in stored.pop(id(module), []):
            weight.data = data

    with_weights = [x for x in model.modules() if any(w.dtype in LOW_PRECISION for w in x.parameters(recurse=False))]
    hooks = [x.register_forward_pre_hook(widen) for x in with_weights]
    hooks += [x.register_forward_hook(restore, always_call=True) for x in with_weights]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
