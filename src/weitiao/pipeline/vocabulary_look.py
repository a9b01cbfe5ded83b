"""`weitiao data vocab`: what a base's tokenizer makes of files, and what new merges would save on rows they never saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.data.vocabulary_extension.extend import Learnt, check_extension, extended, learn, obstacle
from weitiao.data.vocabulary_extension.measure import Rate, Term, latin_terms, new_terms, rate, rates
from weitiao.data.vocabulary_extension.sample import by_hash, up_to
from weitiao.data.vocabulary_extension.writing_scripts import main_script, scripts_to_extend
from weitiao.pipeline.inspection_rows import batches, opened
from weitiao.pipeline.load import open_base_assets

HELD_OUT = 10  # one row in so many is measured and not learnt from
MAX_HELD_OUT = 2000  # rows
SIZES = (2000, 4000, 8000, 16000)
TERMS = 10
MIN_ROWS = 20
ENOUGH = 1.1  # the smallest size whose texts are this much longer, at most, than with the largest


@dataclass(frozen=True)
class Gain:
    """What a number of new merges gives on the held-out rows."""

    add: int
    rate: Rate
    """Of the rows written in the scripts that are extended."""
    fault: Message | None
    """Of the extended tokenizer, on all held-out rows: a text that does not come back, or whose ids changed though no new
    token is in it; None, by construction."""


@dataclass(frozen=True)
class VocabularyLook:
    """What was measured."""

    base: str
    num_tokens: int
    rows: int
    """Different ones."""
    scripts: tuple[str, ...]
    """That would be extended; (): the texts are in Latin letters."""
    rates: dict[str, Rate]
    """Script -> tokens a character of the held-out rows, as the base is; "": of all."""
    latin: list[Term]
    terms: list[Term]
    """Of the scripts that would be extended."""
    before: Rate | None
    """Of the rows that the gains are measured on, as the base is; None: there are none."""
    gains: list[Gain]
    num_learnt_from: int
    """Characters."""
    obstacle: Message | None
    """Why this tokenizer takes no merges."""

    @property
    def proposal(self) -> int | None:
        """How many merges; None: it does not pay, or cannot be done."""
        if not self.gains or self.before is None:
            return None
        limit = ENOUGH * min(x.rate.value for x in self.gains)
        return None if self.before.value <= limit else next(x.add for x in self.gains if x.rate.value <= limit)

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        add = self.proposal
        return {
            "base": self.base,
            "tokens": self.num_tokens,
            "rows": self.rows,
            "scripts": list(self.scripts),
            "held_out": {name or "all": x.as_json() for name, x in self.rates.items()},
            "terms": [_term(x) for x in self.terms],
            "latin_terms": [_term(x) for x in self.latin],
            "learnt_from_characters": self.num_learnt_from,
            "before": self.before.as_json() if self.before else None,
            "gains": [{"add": x.add, **x.rate.as_json(), "fault": _text(x.fault)} for x in self.gains],
            "obstacle": _text(self.obstacle),
            "recipe": {"vocabulary": {"add": add}} if add else None,
        }


def _text(message: Message | None) -> str | None:
    return None if message is None else str(message)


def _term(term: Term) -> dict[str, Any]:
    return {"text": term.text, "pieces": list(term.pieces), "count": term.count, "extra_tokens": term.extra}


def look_at_vocabulary(
    sources: Sequence[Source], base: str, sizes: Sequence[int], scripts: Sequence[str], reporter: Reporter
) -> VocabularyLook:
    """Measure a base's tokenizer on files.

    Args:
        sizes: numbers of new merges that are tried.
        scripts: that are extended; (): what the texts are written in, but Latin.

    Raises:
        DataError: there are too few rows.
        ModelError: the base cannot be opened.
    """
    tokenizer: Any = open_base_assets(base).tokenizer
    texts = _texts(sources, reporter)
    training, held_out = _divided(texts)
    chosen = tuple(scripts) or scripts_to_extend(training)
    of_scripts = [x for x in held_out if main_script(x) in chosen]
    reporter.say(Message("measuring {n:,} held-out rows", n=len(held_out)))
    reason, result = obstacle(tokenizer), None
    if of_scripts and reason is None:
        characters = sum(map(len, training))
        reporter.say(Message("learning {n:,} merges from {characters:,} characters", n=max(sizes), characters=characters))
        result = learn(tokenizer, training, max(sizes), chosen)
    return VocabularyLook(
        base,
        len(tokenizer),
        len(texts),
        chosen,
        rates(tokenizer, held_out),
        latin_terms(tokenizer, training, TERMS),
        new_terms(result.merges, TERMS) if result else [],
        rate(tokenizer, of_scripts) if of_scripts else None,
        [_gain(tokenizer, result, n, held_out, of_scripts) for n in _sizes(sizes, result)] if result else [],
        result.num_characters if result else 0,
        reason,
    )


def _sizes(sizes: Sequence[int], result: Learnt) -> list[int]:
    """The numbers that were asked for and could be learnt; the last is all that could be."""
    return sorted({min(x, len(result.merges)) for x in sizes} - {0})


def _gain(tokenizer: Any, result: Learnt, number: int, held_out: Sequence[str], of_scripts: Sequence[str]) -> Gain:
    new = extended(tokenizer, result.merges[:number])
    return Gain(number, rate(new, of_scripts), next(check_extension(tokenizer, new, held_out), None))


def _texts(sources: Sequence[Source], reporter: Reporter) -> list[str]:
    """The texts of all rows that training would use, each once."""
    texts: dict[str, None] = {}
    for file in opened(sources):
        reporter.say(Message("reading {file}", file=file.path))
        for rows in batches(file):
            texts.update((x.example.full_text, None) for x in rows)
    if len(texts) < MIN_ROWS:
        raise DataError(
            "data: {n:,} different rows are too few to learn from some and measure on others; give {least} or more",
            n=len(texts),
            least=MIN_ROWS,
        )
    return list(texts)


def _divided(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """(to learn from, to measure on): by a hash of the text, so that it does not depend on the order of the rows."""
    order = by_hash(texts)
    cut = len(order) // HELD_OUT
    return up_to(order[cut:]), order[:cut][:MAX_HELD_OUT]
