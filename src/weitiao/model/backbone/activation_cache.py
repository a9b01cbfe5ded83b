"""What frozen layers give, run once and kept on disk: for runs that train the upper layers only, over several epochs.

    rows --[embed, layers 0 .. k-1]--> frozen.bin         once, before step 1, in evaluation mode (no dropout)
    each step       frozen.bin --[layers k .. L-1]--> loss

Liu et al. 2021, "AutoFreeze", arXiv 2102.01386, sec. 4.3; Saad-Falcon et al. 2022, "Embedding Recycling", arXiv 2207.04993.
With a share t of the layers trained, an epoch of full passes costs 1 + 2 t of a forward pass, and 3 t here.

The file holds each row's states [t, D] in the precision that is computed in, so nothing is rounded, and a checksum of each
row: a row that was damaged is made again. Rows run in packs that follow from the rows alone, so a file made anew, on a
resume, is the old one to the bit. It lies in the Run's folder until the run is finished.
"""

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from weitiao.core import events
from weitiao.core.batch import FROZEN_STATES, Batch, Row, pack
from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.model.backbone.decoder import BlockBackbone

TOGETHER = 2048  # tokens that run at once
ROOM = 0.5  # of the free disk, at most
OFTEN = 1.5  # times through the rows from which it pays
FORM = 2  # of how rows run: changed where that gives them other bits
KEY = "train.activation_cache"
FILES = ("frozen.bin", "frozen.json")


class Rows(Protocol):
    """What is trained on."""

    lengths: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Row: ...


def choose(
    model: TrainableModel, rows: Rows, folder: Path, budget: float, epochs: float, refusal: Message | None = None
) -> Decision | None:
    """Whether the outputs of frozen layers are cached; None: there are none, or they would be used once.

    Args:
        budget: bytes at most.
        epochs: how often each row is used.
        refusal: a reason against it that the model cannot know.
    """
    backbone = model.backbone
    if not isinstance(backbone, BlockBackbone) or epochs < OFTEN or model.attachment.virtual_tokens():
        return None
    backbone.below = backbone.frozen(tuple(model.trainable().values()))
    if not backbone.below:
        return None
    states = states_of(model, rows[0])
    size = int(rows.lengths.sum()) * states[0].nbytes
    if model.attachment.set_enabled is not None:
        with model.reference():
            same = torch.equal(states_of(model, rows[0]), states)
        if refusal is None and not same:
            refusal = Message("the method changes them when it is switched off")
    below, backbone.below = backbone.below, 0
    free = shutil.disk_usage(folder).free
    if refusal is None and size > budget:
        refusal = Message(
            "{size} are needed; train.activation_cache allows {limit}", size=_in_units(size), limit=_in_units(budget)
        )
    elif refusal is None and size > ROOM * free:
        refusal = Message("{size} are needed; the disk has {free} left", size=_in_units(size), free=_in_units(free))
    if refusal is not None:
        reason = Message("{n} frozen layers run in every step: {refusal}", n=below, refusal=refusal)
        return Decision(KEY, "off", reason)
    reason = Message(
        "{n} frozen layers run once, without dropout; their outputs are kept on disk ({size})",
        n=below,
        size=_in_units(size),
    )
    return Decision(KEY, "on", reason)


def states_of(model: TrainableModel, row: Row) -> Tensor:
    """[t, D]: what the frozen layers give for one row."""
    assert isinstance(model.backbone, BlockBackbone)
    with evaluating(model):
        return model.backbone.lower(pack([row]).to(model.device))


@dataclass
class ActivationCache:
    """The states of all rows, on disk."""

    model: TrainableModel
    rows: Rows
    folder: Path
    warn: Callable[[str], None]
    checksums: list[int] = field(default_factory=list)

    @property
    def body(self) -> BlockBackbone:
        body = self.model.backbone
        assert isinstance(body, BlockBackbone)
        return body

    @property
    def file(self) -> Path:
        return self.folder / FILES[0]

    @property
    def head(self) -> Path:
        return self.folder / FILES[1]

    @cached_property
    def key(self) -> str:
        """Changes with all that the states depend on."""
        where = [self.model.base_identity.exact, self.body.below, str(self.sample.dtype), self.rows.fingerprint]
        how = [torch.__version__, torch.get_num_threads(), str(self.model.device), TOGETHER, FORM]
        return hashlib.sha256(json.dumps([*where, *how]).encode()).hexdigest()[:16]

    @cached_property
    def sample(self) -> Tensor:
        """[t, D]: the first row's states, for their width and precision."""
        return states_of(self.model, self.rows[0])

    @cached_property
    def packs(self) -> list[list[int]]:
        """Which rows run together, the longest first."""
        found: list[list[int]] = []
        room = 0
        for row in np.argsort(-self.rows.lengths, kind="stable").tolist():
            length = int(self.rows.lengths[row])
            if length > room:
                found.append([])
                room = max(TOGETHER, length)
            found[-1].append(row)
            room -= length
        return found

    @cached_property
    def ends(self) -> np.ndarray:
        """Where each row ends in the file, in bytes."""
        return np.cumsum(np.asarray(self.rows.lengths, np.int64) * self.sample[0].nbytes)

    @cached_property
    def states(self) -> np.ndarray:
        return np.memmap(self.file, np.uint8, "r+")

    def fill(self, reporter: Reporter) -> bool:
        """Run every row through the frozen layers, unless that is done; False: the disk has no room.

        What is there from before an interruption is taken if it is whole and of the same rows, weights and machine.
        """
        if self.head.exists() and self.file.exists():
            self.checksums = self._known()
            if len(self.checksums) == len(self.rows) and self.file.stat().st_size == self.ends[-1]:
                return True
            reporter.warn("what the frozen layers gave is of another run or not whole: it is made anew")
        self.head.unlink(missing_ok=True)  # written again when the file is whole
        self.checksums = [0] * len(self.rows)
        try:
            with self.file.open("wb") as file:
                file.truncate(int(self.ends[-1]))
                for some in reporter.track(self.packs, "running the frozen layers once"):
                    for row, states in self._made(some):
                        file.seek(int(self.ends[row]) - len(states))
                        file.write(states)
                        self.checksums[row] = zlib.crc32(states)
            written = self.head.with_suffix(".part")
            written.write_text(json.dumps({"key": self.key, "checksums": self.checksums}), encoding="utf-8")
            os.replace(written, self.head)
        except OSError as error:
            self.remove()
            reporter.warn(f"what the frozen layers give cannot be kept ({error.strerror}): it is made anew in each step")
            return False
        return True

    def add(self, batches: list[Batch]) -> list[Batch]:
        """Each batch with its rows' states."""
        return [
            replace(batch, more={**batch.more, FROZEN_STATES: torch.cat([self._of(row) for row in batch.row_ids])})
            for batch in batches
        ]

    def _known(self) -> list[int]:
        """The checksums that were written, if they are of these rows, weights and machine."""
        try:
            head = json.loads(self.head.read_text(encoding="utf-8"))
        except ValueError:  # half written, or no text at all
            return []
        return head["checksums"] if isinstance(head, dict) and head.get("key") == self.key else []

    def remove(self) -> None:
        """The files."""
        self.__dict__.pop("checkpoints", None)
        delete_cache(self.folder)

    def _of(self, row: int) -> Tensor:
        """[t, D]"""
        end = int(self.ends[row])
        begin = int(self.ends[row - 1]) if row else 0
        found = self.states[begin:end].copy()
        if zlib.crc32(found) != self.checksums[row]:
            self.warn(f"row {row} of {self.file} was damaged: it is made anew")
            pack_of = next(some for some in self.packs if row in some)
            found = np.frombuffer(dict(self._made(pack_of))[row], np.uint8).copy()
            self.states[begin:end] = found
        return torch.from_numpy(found).view(self.sample.dtype).view(int(self.rows.lengths[row]), -1)

    def _made(self, some: list[int]) -> list[tuple[int, bytes]]:
        """What the frozen layers give for some rows that run together."""
        batch = pack([self.rows[row] for row in some], some).to(self.model.device)
        with evaluating(self.model):
            parts = self.body.lower(batch).cpu().split(batch.lengths)
        return [(row, x.contiguous().view(torch.uint8).numpy().tobytes()) for row, x in zip(batch.row_ids, parts)]


def delete_cache(folder: Path) -> None:
    """Remove what was kept in a Run's folder."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def decided(run: Run) -> Decision | None:
    """What was chosen when the run began, which a resumed run keeps to; None: nothing."""
    return run.decisions.get(KEY)


def keep(
    choice: Decision | None,
    model: TrainableModel,
    rows: Rows,
    run: Run,
    reporter: Reporter,
    fetch: Callable[[int], list[Batch]],
) -> tuple[Callable[[int], list[Batch]], Callable[[], None]]:
    """(the loader with what frozen layers give, if that was chosen; what tidies up when all is learnt)."""
    backbone: Any = model.backbone
    if choice is None or choice.value == "off":
        return fetch, lambda: None
    backbone.below = backbone.frozen(tuple(model.trainable().values()))
    kept, begun = ActivationCache(model, rows, run.folder, reporter.warn), time.perf_counter()
    if not kept.fill(reporter):
        backbone.below = 0
        return fetch, lambda: None
    run.log(events.ActivationsCached(backbone.below, round(time.perf_counter() - begun, 4)))
    return lambda step: kept.add(fetch(step)), kept.remove


def _in_units(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} bytes"
