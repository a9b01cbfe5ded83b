"""Multiple choice from facts: plausible wrong options, the right one in each place equally often; a seed decides all."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

WRONG_OPTIONS = 3


class FactSource(Protocol):
    """One file in evaluate/facts/: makes rows of an exam from files of packages."""

    def rows(self, files: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows with at least `id`, `options` and `answer`.

        Raises:
            InvalidValue: a setting is not one of its own.
        """
        ...


@dataclass(frozen=True)
class Fact:
    """Something that can be asked."""

    id: str
    answer: str
    similar: tuple[str, ...]
    """Wrong options, the most similar first: of the same region, of the same part of speech."""
    fields: Mapping[str, Any]
    """What the question's template needs."""


def as_rows(facts: Sequence[Fact], seed: int, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each fact that has enough wrong options.

    Args:
        limit: draw at most so many.
    """
    generator = random.Random(seed)
    usable = [x for x in facts if len(set(x.similar) - {x.answer}) >= WRONG_OPTIONS]
    if limit is not None and limit < len(usable):
        usable = generator.sample(usable, limit)
    places = [i % (1 + WRONG_OPTIONS) for i in range(len(usable))]
    generator.shuffle(places)
    for fact, place in zip(usable, places):
        wrong = list(dict.fromkeys(x for x in fact.similar if x != fact.answer))[:WRONG_OPTIONS]
        generator.shuffle(wrong)
        options = [*wrong[:place], fact.answer, *wrong[place:]]
        yield {"id": fact.id, **fact.fields, "options": options, "answer": fact.answer}


def nearest_first(
    answer: str, groups: Sequence[Sequence[str]], generator: random.Random, excluded: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Wrong options: drawn from the first group that has enough, filled up from the next.

    Args:
        excluded: options that would be right as well.
    """
    chosen: list[str] = []
    for group in groups:
        candidates = sorted(set(group) - {answer, *chosen} - excluded)
        chosen += generator.sample(candidates, min(len(candidates), WRONG_OPTIONS - len(chosen)))
    return tuple(chosen)
