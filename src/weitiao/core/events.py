"""Events: what a Run logs while it goes on. Frozen dataclasses; one JSON line each in events.jsonl.

    {"event": "step", "step": 1, "data_step": 1, "loss": 2.31, ...}

Events hold codes, numbers and Messages (a template and its fields), never a finished sentence, so that a Run reads in
either language. Fields that equal their default are left out of the line.

    step         optimizer steps taken
    data_step    windows of the data used so far; ahead of `step` where steps were skipped or rolled back
"""

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal

from weitiao.core.messages import Message

Outcome = Literal["finished", "interrupted", "stopped", "failed"]


@dataclass(frozen=True)
class Start:
    """The Run folder was made."""

    time: str
    """UTC, ISO 8601; the same in other events."""
    base: str
    method: str
    objective: str


@dataclass(frozen=True)
class Resume:
    """Training goes on from a checkpoint; later events were removed."""

    step: int
    data_step: int
    time: str


@dataclass(frozen=True)
class Phase:
    """One part of the run starts or ends: read, encode, load, preflight, evaluate before, train ..."""

    name: str
    status: Literal["start", "end"]
    time: str
    seconds: float | None = None
    """How long it took; None at the start."""
    total: int | None = None
    """How many steps are planned, where that is known."""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    step: int
    data_step: int
    loss: float
    """Mean over the step's targets; of several tasks, the sum of their weighted means."""
    grad_norm: float
    """L2, before clipping."""
    learning_rate: float
    tokens: int
    """In the step's rows, over all processes."""
    num_targets: int
    """What the loss is the mean over: tokens (or rows, of heads for a whole row) that carry loss."""
    seconds: float
    notes: Mapping[str, float] = field(default_factory=dict)
    """What the objective, a regularizer or the loss scale reports besides."""


@dataclass(frozen=True)
class Validation:
    """The model was measured on the validation rows."""

    step: int
    data_step: int
    loss: float | None
    """None: no row is held out."""
    scores: Mapping[str, Mapping[str, Any]]
    """By name: value, low, high, n."""
    seconds: float


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint is on disk."""

    step: int
    data_step: int
    blocked_seconds: float
    """How long training waited."""
    seconds: float
    """From the snapshot to the end of writing."""
    name: str
    """Of its folder in checkpoints/."""


@dataclass(frozen=True)
class CheckpointFailed:
    """A checkpoint could not be written; older ones are intact and training goes on."""

    step: int
    data_step: int
    blocked_seconds: float
    reason: Message


@dataclass(frozen=True)
class Skip:
    """The guard skipped a step: no weight was touched."""

    step: int
    """The number the step would have had."""
    data_step: int
    loss: float
    grad_norm: float
    reason: Message
    rows: tuple[int, ...] = ()
    """Its rows, the worst first; suspects.jsonl says more."""


@dataclass(frozen=True)
class Rollback:
    """The guard went back to a healthy checkpoint; the data go on behind the bad stretch."""

    step: int
    """Of the checkpoint."""
    data_step: int
    from_step: int
    lr_factor: float
    """What the learning rate is multiplied by from here on."""
    reason: Message


@dataclass(frozen=True)
class EarlyStop:
    """Validation has not improved for `train.patience` validations."""

    step: int
    data_step: int
    best_step: int


@dataclass(frozen=True)
class ActivationsCached:
    """The frozen layers ran once over all rows."""

    num_layers: int
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Resident memory of the main process, in MiB."""

    before_model_mb: float
    peak_mb: float


@dataclass(frozen=True)
class Throughput:
    """How fast the run trained, next to what matrix products reach on this machine."""

    tokens_per_second: float
    """Median over the steps."""
    steps: int
    unsupported_reason: Message | None = None
    """Why FLOPs were not counted."""
    needed_gflop_per_token: float | None = None
    gflop_per_second: float | None = None
    shared_prefix_fraction: float | None = None
    """Of the tokens, how many were computed together with another row that starts the same."""
    limit_gflop_per_second: float | None = None
    share_of_limit: float | None = None


@dataclass(frozen=True)
class End:
    """Training ended: finished, interrupted by a signal, stopped by the guard, or failed with an error."""

    outcome: Outcome
    step: int
    data_step: int
    time: str
    reason: Message | None = None


Event = (
    Start | Resume | Phase | Step | Validation | Checkpoint | CheckpointFailed | Skip | Rollback | EarlyStop
    | ActivationsCached | Memory | Throughput | End
)  # fmt: skip


def kind_of(event: Event | type[Event]) -> str:
    """The event's name in events.jsonl: CheckpointFailed -> checkpoint_failed."""
    name = event.__name__ if isinstance(event, type) else type(event).__name__
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


KINDS: dict[str, type[Event]] = {
    kind_of(x): x
    for x in (
        Start, Resume, Phase, Step, Validation, Checkpoint, CheckpointFailed, Skip, Rollback, EarlyStop,
        ActivationsCached, Memory, Throughput, End,
    )
}  # fmt: skip


def as_json(event: Event) -> dict[str, Any]:
    """The event as a line of events.jsonl. JSON has no Inf and no NaN: they become strings."""
    values = {x.name: getattr(event, x.name) for x in fields(event) if getattr(event, x.name) != _default(x)}
    return {"event": kind_of(event), **{name: _plain(value) for name, value in values.items()}}


def from_json(record: Any) -> Event | None:
    """The event of a line; None where the line is not one that this version knows."""
    cls = KINDS.get(record.get("event", "")) if isinstance(record, dict) else None
    if cls is None:
        return None
    try:
        return cls(**{x.name: _restored(record[x.name]) for x in fields(cls) if x.name in record})
    except (TypeError, KeyError):  # a field is missing, or a message is not one
        return None


def _default(x: Any) -> Any:
    return x.default_factory() if x.default_factory is not MISSING else x.default


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.as_json()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(x) for key, x in value.items()}
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        is_message = value.keys() == {"template", "fields"}
        return Message.from_json(value) if is_message else {key: _restored(x) for key, x in value.items()}
    if isinstance(value, list):
        return tuple(_restored(x) for x in value)
    return float(value) if value in ("nan", "inf", "-inf") else value
