"""Rows of a given length where there are no data yet: examples of words, and a processor for which a word is a token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weitiao.core.batch import Batch, Row, pack
from weitiao.core.errors import RecipeError
from weitiao.core.example import (
    Chat,
    Example,
    ExtractiveQA,
    Pair,
    Text,
    TextLabel,
    TextScore,
    TokenTags,
    Turn,
)
from weitiao.core.objective import Objective
from weitiao.core.processor import FeatureExtractor, Rendered, SpecialTokens, Target

FIRST_ID = 5
LABELS = 10


@dataclass
class WordProcessor:
    """Text to token ids, one a word; every word is the same token."""

    eos_id: int = 0
    stop_ids: tuple[int, ...] = (0,)
    special_tokens: SpecialTokens = SpecialTokens((), (), (0,))
    mask_id: int | None = 1
    feature_extractor: FeatureExtractor | None = None

    @property
    def parsing_special_tokens(self) -> "WordProcessor":
        return self

    def contains_special_tokens(self, text: str) -> bool:
        return False

    def text(self, text: str, masks: bool = False) -> list[int]:
        """Ids of the words."""
        return [FIRST_ID] * len(text.split())

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and where each word is."""
        spans, start = [], 0
        for word in text.split():
            start = text.index(word, start)
            spans.append((start, start + len(word)))
            start += len(word)
        return [FIRST_ID] * len(spans), spans

    def encode_with_word_ids(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and the number of each word."""
        ids = self.text(text)
        return ids, list(range(len(ids)))

    def encode_transcript(self, text: str) -> list[int]:
        return self.text(text)

    def source(self, text: str, source_language: str | None, target_language: str | None) -> list[int]:
        return self.text(text)

    def target(self, text: str, source_language: str | None, target_language: str | None) -> Target:
        return Target(0, self.text(text))

    def chat(self, turns: Sequence[Turn], tools: str = "") -> list[Rendered]:
        """The turns' words, one after the other."""
        ids: list[int] = []
        mask: list[bool] = []
        for turn in turns:
            turn_ids = self.text(turn.content)
            ids += turn_ids
            mask += [turn.role == "assistant"] * len(turn_ids)
        return [Rendered(ids, mask)]

    def prompt(self, turns: Sequence[Turn], tools: str = "") -> list[int]:
        return self.chat(turns)[0].ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return " ".join("w" for _ in ids)


def planned_batch(objective: Objective, length: int, tokens: int) -> tuple[Objective, Batch]:
    """The objective fitted to examples of its kind, and a batch of at most `tokens` tokens in rows of about `length`.

    Raises:
        RecipeError: rows of its kind cannot be made up.
    """
    examples = _examples(objective.traits.example_type, length)
    if examples is None:
        raise RecipeError("plan: the memory of objective {objective} is not planned yet", objective=objective.name)
    fitted, processor = objective.fit(examples), WordProcessor()
    kinds = [row for x in examples for row in fitted.rows(x, processor)]
    count = max(1, tokens // max(len(x["input_ids"]) for x in kinds))
    rows: list[Row] = [kinds[i % len(kinds)] for i in range(count)]
    return fitted, pack(rows, range(len(rows)))


def _examples(kind: type, length: int) -> list[Any] | None:
    """Examples of about `length` words together; None: there are none of this kind."""
    text, half = _words(length), _words(max(1, length // 2))
    by_type: dict[type, list[Example]] = {
        Text: [Text(text)],
        Chat: [Chat((Turn("user", _words(1)), Turn("assistant", _words(max(1, length - 1)))))],
        TextLabel: [TextLabel(text, (f"class {i}",)) for i in range(LABELS)],
        TextScore: [TextScore(text, (x,)) for x in (0.0, 1.0)],
        Pair: [Pair(half, f"{half} right", (f"{half} wrong",)) for _ in range(2)],
        ExtractiveQA: [ExtractiveQA(_words(8), _words(max(1, length - 8)), ((0, "w"),))],
        TokenTags: [TokenTags(text, tuple((2 * i, 2 * i + 1) for i in range(length)), ("B-a",) + ("O",) * (length - 1))],
    }
    return by_type.get(kind)


def _words(count: int) -> str:
    return " ".join(["w"] * count)
