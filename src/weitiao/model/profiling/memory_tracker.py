"""The memory of a computation, from the shapes of its tensors alone: nothing is computed, no memory is used.

The code that would run runs on fake tensors (torch's FakeTensorMode): they have a shape, a dtype and a lifetime, and no
numbers. Every storage is counted while it lives, so what autograd keeps, what the backward pass needs for a moment and what
the optimizer holds are counted as the real run holds them, whatever method, objective or model it is.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes: allocators round up to these


@dataclass(frozen=True)
class Peak:
    """The moment at which a phase held most."""

    total: int
    """Bytes."""
    parts: dict[str, int]
    """Kind of memory -> bytes."""


@dataclass
class MemoryTracker:
    """Counts the bytes of all storages made or registered while it is on, by kind."""

    apart: str = ""
    """A kind that `peaks_apart` leave out."""
    live: Counter[str] = field(default_factory=Counter)
    peaks: dict[str, Peak] = field(default_factory=dict)
    """Phase -> its peak."""
    peaks_apart: dict[str, Peak] = field(default_factory=dict)
    """Phase -> its peak without the kind `apart`."""
    _phase: str = ""
    _kinds: dict[int, str] = field(default_factory=dict)
    _references: dict[int, Any] = field(default_factory=dict)
    _total: int = 0

    def register(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors that are there already, or move them to another kind."""
        for x in tensors:
            self._count(x, kind)
        self._look()

    def gradients_of(self, parameters: Iterable[nn.Parameter]) -> None:
        """From now on, count the gradients of these parameters as such."""

        def count(p: Tensor) -> None:
            self.register("gradients", [p.grad] if p.grad is not None else [])

        for p in parameters:
            p.register_post_accumulate_grad_hook(count)

    @contextmanager
    def phase(self, name: str, kind: str) -> Iterator[None]:
        """Inside, new storages are of this kind, and peaks are this phase's."""
        before, self._phase = self._phase, name
        try:
            self._look()
            with _Counting(lambda x: self._count(x, kind, moves=False), self._look):
                yield
        finally:
            self._phase = before

    def _count(self, x: Tensor, kind: str, moves: bool = True) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        earlier = self._kinds.get(key)
        if earlier == kind or (earlier is not None and not moves):
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._kinds[key] = kind
        self.live[kind] += size
        if earlier is not None:
            self.live[earlier] -= size
            return
        self._total += size
        self._references[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size
        self._total -= size
        del self._references[key]

    def _look(self) -> None:
        if not self._phase:
            return
        for peaks, total in ((self.peaks, self._total), (self.peaks_apart, self._total - self.live[self.apart])):
            peak = peaks.get(self._phase)
            if peak is None or total > peak.total:
                omitted = self.apart if peaks is self.peaks_apart else ""
                peaks[self._phase] = Peak(total, {kind: n for kind, n in self.live.items() if n and kind != omitted})


class _Counting(TorchDispatchMode):
    def __init__(self, count: Callable[[Tensor], None], look: Callable[[], None]) -> None:
        super().__init__()
        self.count, self.look = count, look

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.count(x)
        self.look()
        return result
