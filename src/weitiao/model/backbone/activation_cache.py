"""The activation cache: the output of the frozen lower layers, computed once and read from disk in every epoch.

    before step 1   rows --[embed, layers 0 .. k-1]--> frozen.bin       in evaluation mode (no dropout)
    every step      frozen.bin --[layers k .. L-1]--> loss

Liu et al. 2021, "AutoFreeze", arXiv 2102.01386, sec. 4.3; Saad-Falcon et al. 2022, "Embedding Recycling", arXiv 2207.04993.
With a fraction t of the layers trained, an epoch costs 1 + 2 t forward passes without the cache, and 3 t with it.

The file holds each row's states [t, D] in the compute dtype, so nothing is rounded, and a checksum per row: damaged rows
are computed again. Which rows run together depends on the rows alone, so a file that is written again, on resume, is
bit-exactly the same. It is in the Run's folder until the run is finished.
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
from typing import Protocol

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
from weitiao.model.backbone.block_backbone import BlockBackbone

TOKENS_PER_BATCH = 2048
MAX_DISK_FRACTION = 0.5  # of the free space
MIN_EPOCHS = 1.5  # below it, the cache costs more than it saves
FORMAT = 2  # changes whenever the same rows would get other bits
KEY = "train.activation_cache"
FILES = ("frozen.bin", "frozen.json")

Fetch = Callable[[int], list[Batch]]


class Rows(Protocol):
    """The training rows."""

    lengths: np.ndarray
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Row: ...


# -- whether to cache -------------------------------------------------------------------------------------------------


def choose_caching(
    model: TrainableModel, rows: Rows, folder: Path, max_bytes: float, epochs: float, refusal: Message | None = None
) -> Decision | None:
    """Whether to cache activations; None: there are no frozen layers that would be worth it.

    Args:
        folder: where the file would be.
        epochs: how many times each row is used.
        refusal: a reason against it that the model does not know of.
    """
    backbone = model.backbone
    if not isinstance(backbone, BlockBackbone) or epochs < MIN_EPOCHS or model.attachment.virtual_tokens():
        return None
    num_layers = backbone.num_frozen_layers(tuple(model.trainable().values()))
    if not num_layers:
        return None
    backbone.num_cached_layers = num_layers
    states = frozen_states(model, rows[0])
    refusal = refusal or _refuse_changed_base(model, rows, states)
    backbone.num_cached_layers = 0
    size, free = int(rows.lengths.sum()) * states[0].nbytes, shutil.disk_usage(folder).free
    if not refusal and size > max_bytes:
        refusal = Message(
            "it would take {size}, and the limit is {limit}", size=_readable(size), limit=_readable(max_bytes)
        )
    elif not refusal and size > MAX_DISK_FRACTION * free:
        refusal = Message("it would take {size}, and the disk has {free} left", size=_readable(size), free=_readable(free))
    if refusal:
        reason = Message("{layers} frozen layers run in every step: {refusal}", layers=num_layers, refusal=refusal)
        return Decision(KEY, "off", reason)
    reason = Message(
        "{layers} frozen layers run once, without dropout; their output is cached on disk ({size})",
        layers=num_layers,
        size=_readable(size),
    )
    return Decision(KEY, "on", reason)


def _refuse_changed_base(model: TrainableModel, rows: Rows, states: Tensor) -> Message | None:
    """A reference model whose lower layers differ (f_learning) could not use the cached states; None: they are the same."""
    if model.attachment.set_enabled is None:
        return None
    with model.reference():
        same = torch.equal(frozen_states(model, rows[0]), states)
    return None if same else Message("with the method switched off, these layers have other weights")


def frozen_states(model: TrainableModel, row: Row) -> Tensor:
    """[t, D]: the output of the frozen layers for one row."""
    assert isinstance(model.backbone, BlockBackbone)
    with evaluating(model):
        return model.backbone.run_frozen(pack([row]).to(model.device))


def recorded_decision(run: Run) -> Decision | None:
    """What was decided when the run was started, which a resumed run keeps; None: nothing yet."""
    return run.decisions.get(KEY)


def cached_fetch(
    decision: Decision | None, model: TrainableModel, rows: Rows, run: Run, reporter: Reporter, fetch: Fetch
) -> tuple[Fetch, Callable[[], None]]:
    """The loader's fetch, with cached states if that was decided; and a function that deletes the cache after training."""
    backbone = model.backbone
    if decision is None or decision.value == "off" or not isinstance(backbone, BlockBackbone):
        return fetch, lambda: None
    backbone.num_cached_layers = backbone.num_frozen_layers(tuple(model.trainable().values()))
    cache, started = ActivationCache(model, rows, run.folder, reporter.warn), time.perf_counter()
    if not cache.fill(reporter):
        backbone.num_cached_layers = 0
        return fetch, lambda: None
    run.log(events.ActivationsCached(backbone.num_cached_layers, round(time.perf_counter() - started, 4)))
    return lambda step: cache.add_states(fetch(step)), cache.delete


# -- the file ---------------------------------------------------------------------------------------------------------


@dataclass
class ActivationCache:
    """The frozen states of all rows, on disk."""

    model: TrainableModel
    rows: Rows
    folder: Path
    warn: Callable[[Message], None]
    checksums: list[int] = field(default_factory=list)
    """[rows] CRC-32 of each row's states."""

    @property
    def backbone(self) -> BlockBackbone:
        assert isinstance(self.model.backbone, BlockBackbone)
        return self.model.backbone

    @property
    def file(self) -> Path:
        return self.folder / FILES[0]

    @property
    def index_file(self) -> Path:
        return self.folder / FILES[1]

    @cached_property
    def key(self) -> str:
        """Changes with everything that the states' bits depend on."""
        data = [self.model.base_identity.exact, self.backbone.num_cached_layers, str(self._sample.dtype)]
        machine = [torch.__version__, torch.get_num_threads(), str(self.model.device), TOKENS_PER_BATCH, FORMAT]
        return hashlib.sha256(json.dumps([*data, self.rows.fingerprint, *machine]).encode()).hexdigest()[:16]

    @cached_property
    def _sample(self) -> Tensor:
        """[t, D]: the first row's states, for their width and dtype."""
        return frozen_states(self.model, self.rows[0])

    @cached_property
    def _batches(self) -> list[list[int]]:
        """Which rows run together, longest first."""
        batches: list[list[int]] = []
        room = 0
        for row in np.argsort(-self.rows.lengths, kind="stable").tolist():
            length = int(self.rows.lengths[row])
            if length > room:
                batches.append([])
                room = max(TOKENS_PER_BATCH, length)
            batches[-1].append(row)
            room -= length
        return batches

    @cached_property
    def _row_ends(self) -> np.ndarray:
        """[rows] where each row ends in the file, in bytes."""
        return np.cumsum(np.asarray(self.rows.lengths, np.int64) * self._sample[0].nbytes)

    @cached_property
    def states(self) -> np.ndarray:
        """The file's bytes, mapped."""
        return np.memmap(self.file, np.uint8, "r+")

    def fill(self, reporter: Reporter) -> bool:
        """Run every row through the frozen layers. A complete file from before an interruption is reused.

        Returns:
            False if the disk is full.
        """
        if self.index_file.exists() and self.file.exists():
            self.checksums = self._read_checksums()
            if len(self.checksums) == len(self.rows) and self.file.stat().st_size == self._row_ends[-1]:
                return True
            reporter.warn(Message("the activation cache is incomplete or from another run: computing it again"))
        self.index_file.unlink(missing_ok=True)  # until the file is complete
        self.checksums = [0] * len(self.rows)
        try:
            with self.file.open("wb") as file:
                file.truncate(int(self._row_ends[-1]))
                for row_ids in reporter.track(self._batches, Message("running the frozen layers once")):
                    for row, states in self._compute(row_ids):
                        file.seek(int(self._row_ends[row]) - len(states))
                        file.write(states)
                        self.checksums[row] = zlib.crc32(states)
            temp = self.index_file.with_suffix(".part")
            temp.write_text(json.dumps({"key": self.key, "checksums": self.checksums}), encoding="utf-8")
            os.replace(temp, self.index_file)
        except OSError as error:
            self.delete()
            reporter.warn(
                Message("no activation cache ({error}): the frozen layers run in every step", error=str(error.strerror))
            )
            return False
        return True

    def add_states(self, batches: list[Batch]) -> list[Batch]:
        """The batches with their rows' states."""
        return [
            replace(batch, more={**batch.more, FROZEN_STATES: torch.cat([self._states_of(row) for row in batch.row_ids])})
            for batch in batches
        ]

    def delete(self) -> None:
        """Delete the files."""
        self.__dict__.pop("states", None)  # unmap first
        delete_cache(self.folder)

    def _read_checksums(self) -> list[int]:
        """The stored checksums, if they belong to these rows, weights and machine."""
        try:
            index = json.loads(self.index_file.read_text(encoding="utf-8"))
        except ValueError:  # half written, or not text
            return []
        return index["checksums"] if isinstance(index, dict) and index.get("key") == self.key else []

    def _states_of(self, row: int) -> Tensor:
        """[t, D]"""
        end = int(self._row_ends[row])
        start = int(self._row_ends[row - 1]) if row else 0
        states = self.states[start:end].copy()
        if zlib.crc32(states) != self.checksums[row]:
            self.warn(Message("row {row} of {file} is damaged: computing it again", row=row, file=self.file))
            row_ids = next(x for x in self._batches if row in x)  # the same rows together again, for the same bits
            states = np.frombuffer(dict(self._compute(row_ids))[row], np.uint8).copy()
            self.states[start:end] = states
        return torch.from_numpy(states).view(self._sample.dtype).view(int(self.rows.lengths[row]), -1)

    def _compute(self, row_ids: list[int]) -> list[tuple[int, bytes]]:
        """(row, its states' bytes) of rows that run together."""
        batch = pack([self.rows[row] for row in row_ids], row_ids).to(self.model.device)
        with evaluating(self.model):
            states = self.backbone.run_frozen(batch).cpu().split(batch.lengths)
        return [(row, x.contiguous().view(torch.uint8).numpy().tobytes()) for row, x in zip(batch.row_ids, states)]


def delete_cache(folder: Path) -> None:
    """Delete the cache in a Run's folder."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def _readable(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.0f} B"
