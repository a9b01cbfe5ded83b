"""Several machines as one, by accelerate: who am I, and the sum over all of us.

Gradients are added after the whole window, not in each backward pass, so machines may have different numbers of
micro-batches, and the sum is divided by nothing: counts were added first.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import nn

Made = TypeVar("Made")


class Distributed:
    """One process of `world`. Alone unless started by torchrun or accelerate launch."""

    def __init__(self, device: torch.device) -> None:
        self.state = PartialState(cpu=device.type == "cpu")
        self.rank, self.world_size = self.state.process_index, self.state.num_processes
        self.device = device

    def alone(self) -> "Distributed":
        """This machine as if there were no others."""
        alone = copy.copy(self)
        alone.rank, alone.world_size = 0, 1
        return alone

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, numbers: dict[str, float]) -> dict[str, float]:
        """The sum over all machines, key by key. A machine without rows has no keys; nought counts for it."""
        if self.world_size == 1:
            return numbers
        every: list[dict[str, float]] = [{} for _ in range(self.world_size)]
        torch.distributed.all_gather_object(every, numbers)
        keys = sorted({key for one in every for key in one})
        return {key: sum(one.get(key, 0.0) for one in every) for key in keys}

    def all_gather(self, items: list[Any]) -> list[Any]:
        """All machines' items, in the order of the machines."""
        if self.world_size == 1:
            return items
        every: list[list[Any]] = [[] for _ in range(self.world_size)]
        torch.distributed.all_gather_object(every, items)
        return [item for one in every for item in one]

    def all_reduce_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Each gradient becomes the sum of all machines' gradients."""
        if self.world_size == 1:
            return
        for weight in weights:
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = reduce(grad, "sum")  # pyright: ignore[reportAttributeAccessIssue]

    def seed(self, seed: int, position: int) -> None:
        """Several machines begin every step with random numbers of their own: a State holds only the first one's."""
        if self.world_size > 1:
            words = f"{seed} {position} {self.rank}".encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(words).digest()[:7], "big"))

    def any(self, flag: bool) -> bool:
        """True everywhere if true anywhere: all stop at the same step."""
        return self.all_reduce({"flag": float(flag)})["flag"] > 0

    def main_first(self, work: Callable[[bool], Made]) -> Made:
        """work(True) on the first machine, then work(False) on the others."""
        made = work(True) if self.is_main else None
        self.barrier()
        return made if made is not None else work(False)

    def barrier(self) -> None:
        self.state.wait_for_everyone()
