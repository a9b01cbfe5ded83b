"""What the memory of training consists of, on each device, with the reason for each part.

    frozen weights     numbers x bytes of their dtype; 4 bits: 4.13 bits a number (QLoRA, arXiv 2305.14314, sec. 3)
    trained weights    4 bytes each: bf16 would round small steps away
    gradients          as the trained weights
    optimizer          AdamW: two moments of 4 bytes a trained number (arXiv 1711.05101, algorithm 2)
    activations        what the backward pass needs of the forward pass
    temporaries        what single operations need for a moment
    allocator          what the C library's heap cannot reuse
    runtime            Python, torch, the CUDA context

Sizes come from a trace of the recipe's own step (pipeline/memory.py), never from a table by method. Sharding divides
them as Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054, sec. 5: stage 1 the optimizer, 2 also gradients, 3 also weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message

GIB = 2**30
SHARDED: dict[str, tuple[str, ...]] = {
    "none": (),
    "zero1": ("optimizer",),
    "zero2": ("optimizer", "gradients"),
    "zero3": ("optimizer", "gradients", "frozen", "trained"),
}
HEAP_HOLES = 0.5
"""Of the activations, on a CPU: what glibc 2.36 held in free chunks between blocks in use (303 of 1,230 MB once). Why is
not proven. Measured on SmolLM2-135M: 0.45 and 0.49 with LoRA, 0.60 and 0.53 with full tuning (1,536 and 4,096 tokens)."""
CUDA_RUNTIME = GIB // 2
"""The CUDA context and its libraries: 0.3 to 0.6 GiB, by driver and card."""
MARGIN = 0.95  # of a device's memory: the rest is for fragmentation and for what else runs there
ORDER = ("frozen", "trained", "gradients", "optimizer", "activations", "temporaries", "allocator", "runtime")


@dataclass(frozen=True)
class TracedMemory:
    """The sizes of one training step, in bytes, as traced."""

    phases: Mapping[str, Mapping[str, int]]
    """forward, backward, optimizer -> kind of memory -> bytes, where the phase holds most; without what stays from earlier
    steps."""
    accumulated: Mapping[str, Mapping[str, int]]
    """The same where gradients do not count."""
    frozen: int
    """Numbers that are not trained, as they were before they were quantized."""
    trained: int
    """Numbers that are trained."""
    gradients: int
    optimizer: int
    largest_layer: int = 0


@dataclass(frozen=True)
class MemoryPart:
    """One kind of memory."""

    name: str
    size: int
    """Bytes, per device."""
    reason: Message

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.size, "reason": str(self.reason)}


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory of training, per device."""

    parts: tuple[MemoryPart, ...]
    phase: str
    """forward, backward or optimizer: when most is held."""
    tokens: int
    """That run at once."""

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(x.size for x in self.parts)

    def fits(self, capacity: int) -> bool:
        """Whether it fits into a device with so many bytes."""
        return self.total <= MARGIN * capacity

    def most_tokens(self, capacity: int) -> int:
        """How many tokens could run at once on a device with so many bytes: what grows with them grows linearly."""
        growing = sum(x.size for x in self.parts if x.name in ("activations", "temporaries", "allocator"))
        room = MARGIN * capacity - (self.total - growing)
        return max(0, int(self.tokens * room / growing)) if growing else 0

    def as_json(self) -> dict[str, Any]:
        parts = [x.as_json() for x in self.parts]
        return {"total": self.total, "phase": self.phase, "tokens": self.tokens, "parts": parts}


def estimate_memory(
    traced: TracedMemory,
    tokens: int,
    device_type: str,
    accumulates: bool = True,
    sharding: str = "none",
    devices: int = 1,
    runtime: int = 0,
) -> MemoryEstimate:
    """The memory of training on each device.

    Args:
        tokens: that run at once on a device.
        accumulates: a step has several micro-batches: all gradients are there while the next one runs.
        sharding: a key of SHARDED.
        runtime: bytes of the process before the model is loaded; 0: CUDA_RUNTIME.
    """
    sizes = {phase: _steady(traced, phase, accumulates) for phase in traced.phases}
    for kinds in sizes.values():
        for kind in SHARDED[sharding]:
            kinds[kind] = -(-kinds.get(kind, 0) // devices)
        if "frozen" in SHARDED[sharding] and devices > 1:
            kinds["temporaries"] = kinds.get("temporaries", 0) + 2 * traced.largest_layer
    phase = max(sizes, key=lambda x: sum(sizes[x].values()))
    kinds = sizes[phase]
    if not traced.frozen:  # a few bytes of buffers
        kinds["trained"] += kinds.pop("frozen", 0)
    kinds["allocator"] = int(HEAP_HOLES * kinds.get("activations", 0)) if device_type == "cpu" else 0
    kinds["runtime"] = runtime or CUDA_RUNTIME
    reasons = _reasons(traced, tokens, device_type)
    parts = tuple(MemoryPart(x, kinds[x], reasons[x]) for x in ORDER if kinds.get(x))
    return MemoryEstimate(parts, phase, tokens)


def _steady(traced: TracedMemory, phase: str, accumulates: bool) -> dict[str, int]:
    """The kinds of a phase from the second step on: the optimizer's state is there, and gradients where they add up."""
    if phase == "optimizer":
        kinds = dict(traced.phases[phase])
        kinds["temporaries"] = max(0, kinds.get("temporaries", 0) - traced.optimizer)
    else:
        kinds = dict((traced.accumulated if accumulates else traced.phases)[phase])
        if accumulates:
            kinds["gradients"] = traced.gradients
    return kinds | {"optimizer": traced.optimizer}


def _reasons(traced: TracedMemory, tokens: int, device_type: str) -> dict[str, Message]:
    allocator = Message("holes in the C library's heap: {share:.0%} of the activations, as measured", share=HEAP_HOLES)
    process = Message("Python, torch and what they loaded, measured now")
    context = Message("the CUDA context and its libraries; 0.3 to 0.6 GiB by driver and card")
    return {
        "frozen": Message("{n:,} frozen numbers, as they are stored", n=traced.frozen),
        "trained": Message("{n:,} trained numbers, 4 bytes each", n=traced.trained),
        "gradients": Message("{bytes:.3g} bytes a trained number", bytes=traced.gradients / max(traced.trained, 1)),
        "optimizer": Message("{bytes:.3g} bytes a trained number", bytes=traced.optimizer / max(traced.trained, 1)),
        "activations": Message("{tokens:,} tokens at once; counted on the shapes of this recipe's own step", tokens=tokens),
        "temporaries": Message("what single operations need for a moment"),
        "allocator": allocator,
        "runtime": process if device_type == "cpu" else context,
    }


def parse_capacity(text: str) -> int:
    """The bytes of a device: 24GB, 40 GiB, 80G, 512MB. Vendors' GB of memory are GiB.

    >>> parse_capacity("24GB") == parse_capacity("24 GiB") == 24 * 2**30
    True

    Raises:
        RecipeError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([gGmMtT])(?:i?[bB])?\s*", text)
    if not match or not float(match[1]):
        raise RecipeError("--gpu {text}: expected the memory of one device, as in 24GB", text=text)
    return int(float(match[1]) * {"m": 2**20, "g": 2**30, "t": 2**40}[match[2].lower()])
