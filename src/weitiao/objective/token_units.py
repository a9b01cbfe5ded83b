"""Tokens of a text whose units (words; in Chinese, characters) each have a tag: which token a unit starts at."""

from collections.abc import Sequence

from weitiao.core.batch import IGNORE, Row
from weitiao.core.example import TokenTags
from weitiao.core.processor import Processor


def encode_units(example: TokenTags, processor: Processor) -> tuple[list[int], list[int | None]]:
    """The tokens from the first unit to the last, and each unit's first token; None: the tokenizer has none for it.

    Where a token would contain letters of two units, the text is encoded in two parts.
    """
    cuts: set[int] = set()
    while True:
        ids, offsets = _encode_parts(example.text, sorted(cuts), processor)
        crossed = _crossed_units(example.units, offsets)
        if not crossed:
            break
        cuts |= crossed
    first_tokens: list[int | None] = []
    token = 0
    for start, end in example.units:
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        has_token = token < len(offsets) and offsets[token][0] < end and offsets[token][1] > offsets[token][0]
        first_tokens.append(token if has_token else None)
        token += has_token
    first = next((x for x in first_tokens if x is not None), 0)
    text_end = example.units[-1][1] if example.units else 0
    end = max((t + 1 for t, (a, b) in enumerate(offsets) if a < text_end), default=0)
    return ids[first:end], [None if x is None else x - first for x in first_tokens]


def with_special_tokens(ids: Sequence[int], processor: Processor) -> Row:
    """The tokens between the special ones, without labels."""
    whole = [*processor.special_tokens.first, *ids, *processor.special_tokens.last]
    return Row(input_ids=whole, labels=[IGNORE] * len(whole))


def _crossed_units(units: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> set[int]:
    """The starts of units that lie inside a token with letters of the unit before."""
    crossed, token = set[int](), 0
    for (_, end_before), (start, _) in zip(units, units[1:]):
        while token < len(offsets) and offsets[token][1] <= start:
            token += 1
        if token < len(offsets) and offsets[token][0] < end_before:
            crossed.add(start)
    return crossed


def _encode_parts(text: str, cuts: Sequence[int], processor: Processor) -> tuple[list[int], list[tuple[int, int]]]:
    """The text encoded in parts that meet at the cuts: ids, and each token's (start, end) in characters."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)]):
        part_ids, part_offsets = processor.encode_with_offsets(text[start:end])
        ids += part_ids
        offsets += [(start + a, start + b) for a, b in part_offsets]
    return ids, offsets
