"""Tokens a character, by script; and which terms a tokenizer cuts into many pieces."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weitiao.core.intervals import bootstrap_draws, percentiles
from weitiao.data.vocabulary_extension.byte_level import readable
from weitiao.data.vocabulary_extension.extend import encoded
from weitiao.data.vocabulary_extension.merges import NewMerge, pieces_of
from weitiao.data.vocabulary_extension.writing_scripts import main_script

DRAWS = 1000
SHORTEST_TERM = 2  # characters
LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f][A-Za-z\u00c0-\u024f'-]+")


@dataclass(frozen=True)
class Rate:
    """Tokens a character of some rows, with a 95 % interval (bootstrap over rows)."""

    rows: int
    characters: int
    tokens: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.tokens / self.characters

    def as_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "characters": self.characters,
            "tokens": self.tokens,
            "tokens_per_character": round(self.value, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
        }


@dataclass(frozen=True)
class Term:
    """A piece of text that takes several tokens."""

    text: str
    pieces: tuple[str, ...]
    """As the tokenizer has them; bytes that are no whole character as \\xe7."""
    count: int

    @property
    def extra(self) -> int:
        """Tokens that one token for it would save."""
        return self.count * (len(self.pieces) - 1)


def rates(tokenizer: Any, texts: Sequence[str]) -> dict[str, Rate]:
    """Tokens a character of rows, by the script most of their letters are of; "": of all rows."""
    lengths = np.array([len(x) for x in texts], float)
    tokens = np.array([len(ids) for ids in encoded(tokenizer, texts)], float)
    scripts = [main_script(x) for x in texts]
    names = ["", *(name for name, _ in Counter(scripts).most_common())]
    return {name: _rate(*(x[[not name or y == name for y in scripts]] for x in (lengths, tokens))) for name in names}


def rate(tokenizer: Any, texts: Sequence[str]) -> Rate:
    """Tokens a character of rows, all together."""
    tokens = [len(ids) for ids in encoded(tokenizer, texts)]
    return _rate(np.array([len(x) for x in texts], float), np.array(tokens, float))


def _rate(lengths: np.ndarray, tokens: np.ndarray) -> Rate:
    values = [
        float(x)
        for rows in bootstrap_draws(len(lengths), DRAWS)
        for x in tokens[rows].sum(1) / np.maximum(lengths[rows].sum(1), 1)
    ]
    return Rate(len(lengths), int(lengths.sum()), int(tokens.sum()), *percentiles(values, len(lengths)))


def latin_terms(tokenizer: Any, texts: Iterable[str], number: int) -> list[Term]:
    """Words in Latin letters that cost most tokens more than one, the costliest first.

    A word is counted as it stands in a text, with the space before it.
    """
    counts = Counter(word for text in texts for word in LATIN_WORD.findall(text))
    frequent = [word for word, _ in counts.most_common(20 * number)]
    spelled = [tokenizer.convert_ids_to_tokens(ids) for ids in encoded(tokenizer, [f" {x}" for x in frequent])]
    terms = (Term(word, tuple(map(readable, x)), counts[word]) for word, x in zip(frequent, spelled))
    return sorted((x for x in terms if x.extra), key=lambda x: -x.extra)[:number]


def new_terms(merges: Sequence[NewMerge], number: int) -> list[Term]:
    """Of the new tokens, those of several characters that save most tokens, the costliest first."""
    pieces = pieces_of(merges)
    terms = (Term(readable(x.token), tuple(map(readable, pieces[x.token])), x.count) for x in merges)
    words = (x for x in terms if "\\x" not in x.text and len(x.text.strip()) >= SHORTEST_TERM)
    return sorted(words, key=lambda x: -x.extra)[:number]
