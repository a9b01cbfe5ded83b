"""Several processes as one, by accelerate: this process's rank, and sums over all processes.

Gradients are summed after the whole window, not in each backward pass, so processes may have different numbers of
micro-batches. The sum is not divided by anything, because the counts were summed before.
"""

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn

Result = TypeVar("Result")


class Distributed:
    """One process of `world_size`; the only one unless started by torchrun or accelerate launch."""

    def __init__(self, device: torch.device) -> None:
        self.state = PartialState(cpu=device.type == "cpu")
        self.rank, self.world_size = self.state.process_index, self.state.num_processes
        self.device = device

    def single(self) -> "Distributed":
        """This process as if there were no others."""
        single = copy.copy(self)
        single.rank, single.world_size = 0, 1
        return single

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce(self, numbers: dict[str, float]) -> dict[str, float]:
        """The sum over all processes, key by key. A process without rows has no keys; it counts as zero."""
        if self.world_size == 1:
            return numbers
        by_rank: list[dict[str, float]] = [{} for _ in range(self.world_size)]
        torch.distributed.all_gather_object(by_rank, numbers)
        keys = sorted({key for one in by_rank for key in one})
        return {key: sum(one.get(key, 0.0) for one in by_rank) for key in keys}

    def all_gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, in the order of their ranks."""
        if self.world_size == 1:
            return items
        by_rank: list[list[Any]] = [[] for _ in range(self.world_size)]
        torch.distributed.all_gather_object(by_rank, items)
        return [item for one in by_rank for item in one]

    def all_reduce_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by the sum of the gradients of all processes."""
        if self.world_size == 1:
            return
        for weight in weights:
            grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad = cast(Tensor, reduce(grad, "sum"))

    def seed(self, seed: int, data_step: int) -> None:
        """With several processes, give each step and process a seed of its own.

        A State holds only the main process's random generators, so the others could not resume from it.
        """
        if self.world_size > 1:
            text = f"{seed} {data_step} {self.rank}".encode()
            torch.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:7], "big"))

    def any(self, flag: bool) -> bool:
        """True in all processes if true in one: all stop at the same step."""
        return self.all_reduce({"flag": float(flag)})["flag"] > 0

    def main_first(self, work: Callable[[bool], Result]) -> Result:
        """work(True) in the main process, then work(False) in the others."""
        result = work(True) if self.is_main else None
        self.barrier()
        return result if result is not None else work(False)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.state.wait_for_everyone()
