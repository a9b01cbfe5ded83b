"""What is to be judged: prompts with the answers of several models, and who sees which of them where.

review.json     models, prompts, answers, and the secret that shuffles them
votes.jsonl     one vote a line: an id, a side; no model                        (review/votes.py)

Everything that is drawn is a function of (secret, what it is drawn for), so a review goes on where it stopped, and one item
does not depend on the others: its id, which answer is on the left, its place in the order of a judge.
"""

import hashlib
import hmac
import itertools
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.files import write_text

FILE, KIND = "review.json", "weitiao review"


@dataclass(frozen=True)
class ReviewItem:
    """One prompt with the answer of each model."""

    messages: tuple[dict[str, Any], ...]
    answers: dict[str, str]
    """By model."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, by the names of their models in the order of the command line."""

    item: int
    first: str
    second: str


@dataclass(frozen=True)
class ReviewSet:
    """All that is to be judged."""

    models: dict[str, str]
    """Name -> target."""
    items: tuple[ReviewItem, ...]
    secret: str
    settings: dict[str, Any] = field(default_factory=dict)
    """How the answers were made."""

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two models on every prompt, where their answers differ."""
        names = list(self.models)
        found = (Pair(i, a, b) for i in range(len(self.items)) for a, b in itertools.combinations(names, 2))
        return [x for x in found if self.items[x.item].answers[x.first] != self.items[x.item].answers[x.second]]

    @cached_property
    def same(self) -> list[Pair]:
        """Two models with one answer: nobody is asked, it is a tie."""
        names, shown = list(self.models), set(self.pairs)
        every = (Pair(i, a, b) for i in range(len(self.items)) for a, b in itertools.combinations(names, 2))
        return [x for x in every if x not in shown]

    def for_judge(self, judge: str) -> list[Pair]:
        """The pairs in the order in which a judge sees them."""
        return sorted(self.pairs, key=lambda x: self._drawn("order", judge, x))

    def id_of(self, judge: str, pair: Pair) -> str:
        """A name of a pair that says nothing about it."""
        return self._drawn("id", judge, pair)[:16]

    def is_swapped(self, judge: str, pair: Pair) -> bool:
        """Whether the second model's answer is on the left."""
        return int(self._drawn("side", judge, pair)[:8], 16) % 2 == 1

    def sides(self, judge: str, pair: Pair) -> tuple[str, str]:
        """The models whose answers are on the left and on the right."""
        return (pair.second, pair.first) if self.is_swapped(judge, pair) else (pair.first, pair.second)

    def by_id(self, judge: str) -> dict[str, Pair]:
        return {self.id_of(judge, x): x for x in self.pairs}

    def _drawn(self, what: str, judge: str, pair: Pair) -> str:
        drawn_for = json.dumps([what, judge, pair.item, pair.first, pair.second]).encode()
        return hmac.new(self.secret.encode(), drawn_for, hashlib.sha256).hexdigest()

    # -- on disk ------------------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FILE, json.dumps({"kind": KIND, **asdict(self)}, ensure_ascii=False, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "ReviewSet":
        """
        Raises:
            DataError: the folder holds no review.
        """
        try:
            record = json.loads((folder / FILE).read_text(encoding="utf-8"))
            items = tuple(ReviewItem(tuple(x["messages"]), dict(x["answers"])) for x in record["items"])
            return cls(dict(record["models"]), items, record["secret"], dict(record["settings"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(
                "{folder} holds no review (`weitiao review A B --prompts FILE` makes one)", folder=folder
            ) from None
