"""votes.jsonl: each vote is on the disk before the next item is shown; what a judge votes last on an item counts."""

import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from weitiao.core import event_log

FILE = "votes.jsonl"
Verdict = Literal["left", "right", "tie", "both_bad"]
VERDICTS: tuple[Verdict, ...] = ("left", "right", "tie", "both_bad")
RUBRICS = ("accuracy", "completeness", "tone", "safety")


@dataclass(frozen=True)
class Vote:
    """What a judge said of an item, by sides."""

    id: str
    judge: str
    verdict: Verdict
    rubrics: Mapping[str, Verdict] = field(default_factory=dict)
    """Of RUBRICS, those that were judged."""
    comment: str = ""
    seconds: float = 0.0
    """From showing the item to the vote."""


class VoteFile:
    """The votes of a review; safe from several threads."""

    def __init__(self, folder: Path) -> None:
        self.path, self._lock = folder / FILE, threading.Lock()
        self._votes: dict[tuple[str, str], Vote] = {(x.judge, x.id): x for x in read_votes(folder)}

    def add(self, vote: Vote) -> None:
        """Append one, and wait until it is on the disk."""
        with self._lock:
            event_log.append(self.path, asdict(vote))
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._votes[vote.judge, vote.id] = vote

    @property
    def every(self) -> list[Vote]:
        """The last vote of each judge on each item."""
        with self._lock:
            return list(self._votes.values())

    def of(self, judge: str) -> dict[str, Vote]:
        """A judge's last vote on each item."""
        with self._lock:
            return {item: x for (name, item), x in self._votes.items() if name == judge}


def read_votes(folder: Path) -> list[Vote]:
    """The last vote of each judge on each item; torn lines are left out."""
    votes: dict[tuple[str, str], Vote] = {}
    for record in event_log.read(folder / FILE):
        if (vote := _vote(record)) is not None:
            votes[vote.judge, vote.id] = vote
    return list(votes.values())


def _vote(record: Mapping[str, Any]) -> Vote | None:
    known = {key: record[key] for key in Vote.__dataclass_fields__ if key in record}
    return Vote(**known) if {"id", "judge", "verdict"} <= known.keys() and known["verdict"] in VERDICTS else None
