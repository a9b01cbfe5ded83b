"""Adapters on one base model that come and go while it is used; each row of a batch goes through its own.

    listed     thousands: a name and how to read it        register
    in slots   those in use, at most `max_loras`           add, or the first batch that names one
    evicted    the least recently used that can be read again, when a slot is needed

The slots are the stacks of adapter_stack.py; their number and their rank grow with what is added. max_loras is vLLM's word.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from weitiao.core.errors import ModelError
from weitiao.core.method import Attachment
from weitiao.model.adapters.adapter_stack import MultiAdapterLinear, stack_dtype
from weitiao.model.adapters.adapter_weights import LowRankAdapter
from weitiao.model.adapters.row_routing import BASE, Routing, current

MAX_LORAS = 32
FIRST_SLOTS = 4


@dataclass
class _Entry:
    """An adapter that is listed."""

    read: Callable[[], LowRankAdapter] | None
    """None: it exists only in its slot, and is never evicted."""
    version: int


class AdapterPool:
    """The adapters of one base model. Calls from several threads wait for each other, and for a running `select`."""

    def __init__(self, model: nn.Module, max_loras: int = MAX_LORAS) -> None:
        """
        Args:
            max_loras: adapters kept in memory; more only where a batch needs more at once, or where they cannot be read
                again.
        """
        self.model, self.max_loras = model, max_loras
        self.layers: dict[str, MultiAdapterLinear] = {}
        """Those that an adapter changes, by name."""
        self._entries: dict[str, _Entry] = {}
        self._slots: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._looped: set[int] = set()
        self._num_slots = self._versions = 0
        self._enabled = True
        self._lock = threading.RLock()

    # -- which there are ----------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """All that are listed."""
        return tuple(self._entries)

    @property
    def loaded(self) -> tuple[str, ...]:
        """Those in memory, the least recently used first."""
        return tuple(self._slots)

    def version(self, name: str) -> int:
        """A number that no other adapter of this name has had: what was computed with another one is void. 0: the base."""
        return self._entries[name].version if name else 0

    def add(self, name: str, adapter: LowRankAdapter, read: Callable[[], LowRankAdapter] | None = None) -> None:
        """Put an adapter into a slot; one of the same name is replaced.

        Args:
            read: reads it again after it was evicted; None: it is never evicted.
        """
        with self._lock:
            self.remove(name)
            self._list(name, read)
            try:
                self._load(name, adapter, keep={name})
            except BaseException:
                self.remove(name)
                raise

    def register(self, name: str, read: Callable[[], LowRankAdapter]) -> None:
        """List an adapter that is read when a batch first names it; one of the same name is replaced."""
        with self._lock:
            self.remove(name)
            self._list(name, read)

    def remove(self, name: str) -> None:
        """Forget an adapter, if there is one of this name. Rows of other adapters keep their slots."""
        with self._lock:
            self._unload(name)
            self._entries.pop(name, None)

    def rename(self, name: str, new: str) -> None:
        """Give an adapter another name; one that had this name is removed."""
        with self._lock:
            self.remove(new)
            self._entries[new] = self._entries.pop(name)
            if name in self._slots:
                self._slots[new] = self._slots.pop(name)

    def _list(self, name: str, read: Callable[[], LowRankAdapter] | None) -> None:
        self._versions += 1
        self._entries[name] = _Entry(read, self._versions)

    # -- slots --------------------------------------------------------------------------------------------------------

    @torch.inference_mode(False)
    @torch.no_grad()
    def _load(self, name: str, adapter: LowRankAdapter, keep: set[str]) -> None:
        slot = self._free_slot(keep)
        try:
            for layer_name, (a, b, scale) in adapter.factors.items():
                self._layer(layer_name).set_slot(slot, a, b, scale)
            for layer_name, layer in adapter.looped.items():
                self._layer(layer_name).looped[slot] = layer
        except BaseException:
            self._clear(slot)
            raise
        if adapter.looped:
            self._looped.add(slot)
        self._slots[name] = slot

    def _free_slot(self, keep: set[str]) -> int:
        """A slot that is free, or becomes free when the least recently used adapter goes."""
        taken = set(self._slots.values())
        if len(taken) >= self.max_loras:
            evictable = [x for x in self._slots if x not in keep and self._entries[x].read is not None]
            if evictable:
                taken.discard(self._slots[evictable[0]])
                self._unload(evictable[0])
        if len(taken) >= self._num_slots:
            self._num_slots = max(FIRST_SLOTS, 2 * self._num_slots, len(taken) + 1)
            if len(taken) < self.max_loras:
                self._num_slots = min(self._num_slots, self.max_loras)
            for layer in self.layers.values():
                layer.resize(self._num_slots, layer.a.shape[1])
        return next(x for x in range(self._num_slots) if x not in taken)

    def _layer(self, name: str) -> MultiAdapterLinear:
        """The layer of a name, put into the model when an adapter first changes it."""
        if name not in self.layers:
            base = self.model.get_submodule(name)
            layer = MultiAdapterLinear(base, self._num_slots, stack_dtype(next(self.model.parameters())))
            layer.on = self._enabled
            layer.train(base.training)
            self.layers[name] = layer
            self.model.set_submodule(name, layer)
        return self.layers[name]

    def _unload(self, name: str) -> None:
        if (slot := self._slots.pop(name, None)) is not None:
            self._clear(slot)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _clear(self, slot: int) -> None:
        self._looped.discard(slot)
        for layer in self.layers.values():
            layer.clear(slot)

    # -- use ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def select(self, names: Sequence[str], lengths: Sequence[int] | None = None) -> Iterator[None]:
        """Inside, each row of the batch goes through its adapter; see `Attachment.adapters_by_row`. What is not in memory
        is read, and other threads cannot change the pool.

        Raises:
            ModelError: there is no such adapter, or it can no longer be read.
        """
        with self._lock:
            slots = self._slots_of(names)
            by_row = tuple(slots[x] for x in names)
            packed = None if lengths is None else tuple(lengths)
            device = next(self.model.parameters()).device
            token = current.set(Routing(by_row, packed, frozenset(self._looped), device))
            try:
                yield
            finally:
                current.reset(token)

    def _slots_of(self, names: Sequence[str]) -> dict[str, int]:
        used = set(names) - {""}
        if unknown := sorted(used - self._entries.keys()):
            raise ModelError(
                "there is no adapter called {name!r}; there are: {adapters}",
                name=unknown[0],
                adapters=", ".join(self._entries),
            )
        for name in dict.fromkeys(names):
            read = self._entries[name].read if name else None
            if name and name not in self._slots and read is not None:
                self._load(name, read(), keep=used)
            if name:
                self._slots.move_to_end(name)
        return {"": BASE, **{x: self._slots[x] for x in used}}

    def set_enabled(self, enabled: bool) -> None:
        """False: every row goes through the base model."""
        self._enabled = enabled
        for layer in self.layers.values():
            layer.on = enabled

    @contextmanager
    def unmounted(self) -> Iterator[None]:
        """Inside, the model has its own layers, so that a method can be attached to it as to any base model."""
        with self._lock:
            for name, layer in self.layers.items():
                self.model.set_submodule(name, layer.base_layer)
            try:
                yield
            finally:
                for name, layer in self.layers.items():
                    self.model.set_submodule(name, layer)

    def attachment(self) -> Attachment:
        """What a TrainableModel needs to know of the adapters."""
        self.model.requires_grad_(False)
        return Attachment(
            trainable=set(), set_enabled=self.set_enabled, select_adapter=self.select, adapter_version=self.version
        )
