"""A linear layer with the low-rank changes of many adapters, stacked so that one product serves all of them.

    A [slots, R, D_in], B [slots, R, D_out]            y_t = W x_t + B_s^T (A_s x_t)        s: the slot of token t
    a group of many tokens    y[rows] += (x[rows] A_s^T) B_s
    a bucket of small groups  bmm(bmm(x [G, m, D_in], A [G, D_in, R]), B [G, R, D_out])

Sheng et al. 2023, "S-LoRA", arXiv 2311.03285, sec. 4 and 5; Chen et al. 2023, "Punica", arXiv 2310.18547, sec. 4: the base
runs once for all adapters, then each change on its own rows. B is stored transposed, with the scale multiplied in; ranks
below R are padded with zeros, and products use the highest rank that takes part in them.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weitiao.core.hardware import cpu_bf16
from weitiao.model.adapters.module_replacement import shape_of
from weitiao.model.adapters.row_routing import Bucket, Group, Rows, current

MAX_GATHERED = 4  # combinations of adapters whose factors a layer keeps side by side


class ChangedOutput(Protocol):
    """A layer whose output follows from its base layer's, but not by a low-rank product alone (DoRA)."""

    def forward_from(self, x: Tensor, base_output: Tensor) -> Tensor: ...


class MultiAdapterLinear(nn.Module):
    """A linear layer with the changes of several adapters. Outside of `AdapterPool.select` it is its base layer."""

    base_layer: Any
    a: Tensor
    b: Tensor

    def __init__(self, base: nn.Module, num_slots: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base_layer, self.on = base, True
        self.ranks: dict[int, int] = {}
        """Slot -> rank of its change here; slots that change nothing here are left out."""
        self.looped: dict[int, Any] = {}
        """Slot -> ChangedOutput."""
        self._gathered: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        out_features, in_features = shape_of(base)
        device = next(base.parameters()).device
        self.register_buffer("a", torch.zeros(num_slots, 0, in_features, dtype=dtype, device=device), persistent=False)
        self.register_buffer("b", torch.zeros(num_slots, 0, out_features, dtype=dtype, device=device), persistent=False)

    # -- slots --------------------------------------------------------------------------------------------------------

    def resize(self, num_slots: int, rank: int) -> None:
        """Make room for more slots or a higher rank; what is there stays."""
        if (num_slots, rank) == self.a.shape[:2]:
            return
        self._gathered.clear()
        slots, ranks = min(num_slots, self.a.shape[0]), min(rank, self.a.shape[1])
        for name in ("a", "b"):
            old = self.get_buffer(name)
            new = old.new_zeros(num_slots, rank, old.shape[2])
            new[:slots, :ranks] = old[:slots, :ranks]
            setattr(self, name, new)

    @torch.no_grad()
    def set_slot(self, slot: int, a: Tensor, b: Tensor, scale: float) -> None:
        """Fill a slot with s B A: a [R, D_in], b [D_out, R]."""
        rank = len(a)
        if rank > self.a.shape[1]:
            self.resize(self.a.shape[0], rank)
        self.clear(slot)
        self.a[slot, :rank] = a
        if b.dtype == self.b.dtype and b.device == self.b.device:
            torch.mul(b.T, scale, out=self.b[slot, :rank])
        else:
            self.b[slot, :rank] = b.T.float() * scale
        self.ranks[slot] = rank

    def clear(self, slot: int) -> None:
        """Empty a slot, if anything is in it."""
        self._gathered = {slots: x for slots, x in self._gathered.items() if slot not in slots}
        self.looped.pop(slot, None)
        if self.ranks.pop(slot, 0):
            self.a[slot].zero_()
            self.b[slot].zero_()

    def _factors(self, slots: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A [G, R, D_in] and B [G, R, D_out] of these slots, side by side: copied once for a combination of adapters."""
        rank, first = max(self.ranks.get(x, 0) for x in slots), slots[0]
        if slots == tuple(range(first, first + len(slots))):
            return self.a[first : first + len(slots), :rank], self.b[first : first + len(slots), :rank]
        if slots not in self._gathered:
            while len(self._gathered) >= MAX_GATHERED:
                self._gathered.pop(next(iter(self._gathered)))
            index = torch.tensor(slots, device=self.a.device)
            self._gathered[slots] = self.a[index, :rank], self.b[index, :rank]
        return self._gathered[slots]

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        y, routing = self.base_layer(x), current.get()
        if routing is None or not self.on:
            return y
        plan = routing.plan_for(x)
        inputs, outputs = x.flatten(0, -2), y.flatten(0, -2)
        if inputs.dtype != self.a.dtype:
            inputs = inputs.to(self.a.dtype)
        for group in plan.groups:
            if group.slot in self.ranks:
                self._add_group(inputs, outputs, group)
        for bucket in plan.buckets:
            if any(slot in self.ranks for slot in bucket.slots):
                self._add_bucket(inputs, outputs, bucket)
        for group in plan.looped:
            if group.slot in self.looped:
                rows = group.rows
                outputs[rows] = self.looped[group.slot].forward_from(inputs[rows], outputs[rows])
        return outputs.view(y.shape)

    def _add_group(self, inputs: Tensor, outputs: Tensor, group: Group) -> None:
        rank, rows = self.ranks[group.slot], group.rows
        low = inputs[rows] @ self.a[group.slot, :rank].T  # [N, R]
        b = self.b[group.slot, :rank]
        if isinstance(rows, slice) and outputs.dtype == b.dtype:
            outputs[rows].addmm_(low, b)
        else:
            _add(outputs, rows, low @ b)

    def _add_bucket(self, inputs: Tensor, outputs: Tensor, bucket: Bucket) -> None:
        a, b = self._factors(bucket.slots)
        grouped = inputs[bucket.source].unflatten(0, (len(bucket.slots), bucket.width))  # [G, m, D_in]
        low = torch.bmm(grouped, a.transpose(1, 2))  # [G, m, R]
        if isinstance(bucket.source, slice) and outputs.dtype == b.dtype:
            outputs[bucket.source].unflatten(0, grouped.shape[:2]).baddbmm_(low, b)
            return
        change = torch.bmm(low, b).flatten(0, 1)
        _add(outputs, bucket.target, change if bucket.positions is None else change[bucket.positions])


def _add(outputs: Tensor, rows: Rows, change: Tensor) -> None:
    change = change.to(outputs.dtype)
    if isinstance(rows, slice):
        outputs[rows].add_(change)
    else:
        outputs.index_add_(0, rows, change)


def stack_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the factors beside such a weight: its own, or fp32 where the CPU would have to emulate bf16."""
    emulated = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not cpu_bf16()
    return torch.float32 if emulated or not weight.dtype.is_floating_point else weight.dtype
