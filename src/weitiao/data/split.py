"""Training rows and held-out rows: by content, so that neither equal nor nearly equal rows are on both sides."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import numpy as np

from weitiao.core.errors import DataError
from weitiao.core.example import AudioText, ExtractiveQA, SourcedExample, plain
from weitiao.core.messages import Message, joined
from weitiao.data.duplicates.clusters import find_duplicates

CLUSTERED_CHARACTERS = 30_000_000  # of all inputs: about 20 s; in larger data only equal inputs are looked for
LARGEST_CLUSTER = 0.5  # of the rows that are to be held out: a larger one would decide the size of the split


def split(examples: list[SourcedExample], fraction: float) -> tuple[list[SourcedExample], list[SourcedExample], Message]:
    """Hold out a fraction of the rows, by content: rows with the same input stay on one side, and a row keeps its side when
    data are added.

    The hash of the input decides (letter case, width and spaces do not count); of near-duplicates that of the first, so
    that they stay on one side. If one cluster of them were most of what is held out, only equal inputs stay together; if
    one input makes up more than a fifth of the rows, the hash of the whole row decides. With several tasks, each is split
    on its own.

    Returns:
        (train, validation, how it was decided)
    """
    if fraction <= 0:
        return examples, [], Message("validation: 0")
    held_out, reasons = [False] * len(examples), []
    for task in dict.fromkeys(x.task for x in examples):
        ids = [i for i, x in enumerate(examples) if x.task == task]
        try:
            sides, reason = _held_out([examples[i].without_task for i in ids], fraction)
        except DataError as error:
            if not task:
                raise
            raise DataError("task {task}: {problem}", task=task, problem=error.message) from None
        reasons.append(Message("{task}: {reason}", task=task, reason=reason) if task else reason)
        for i, side in zip(ids, sides):
            held_out[i] = side
    reason = reasons[0] if len(reasons) == 1 else joined("; ", reasons)
    train = [x for x, side in zip(examples, held_out) if not side]
    return train, [x for x, side in zip(examples, held_out) if side], reason


def _held_out(examples: list[SourcedExample], fraction: float) -> tuple[list[bool], Message]:
    """Whether each example is held out, and how it was decided."""
    hashes, reason = _hashes(examples, fraction)
    held_out = hashes >> 16 < fraction * 16**12
    if not held_out.any() and (hashes != hashes[0]).any():
        held_out = hashes == hashes.min()
    if held_out.all():
        raise DataError("validation: too few different rows to hold any out. Use more rows, or validation: 0.")
    return held_out.tolist(), reason


def _hashes(examples: list[SourcedExample], fraction: float) -> tuple[np.ndarray, Message]:
    """[rows] the hash that decides, equal for rows that must be on one side; and what it is the hash of."""
    texts, reason = _split_texts(examples)
    hashes = _content_hashes(texts())
    if _are_few(texts()):
        together = hashes[find_duplicates(texts()).first]
        if _most(together) <= max(1, fraction * len(examples) * LARGEST_CLUSTER):
            return together, Message("{reason}, near-duplicates together", reason=reason)
    if _most(hashes) <= max(1, len(examples) // 5):
        return hashes, reason
    return _content_hashes(x.example.full_text for x in examples), Message("by the hash of the whole row")


def _content_hashes(texts: Iterable[str]) -> np.ndarray:
    """[rows] the first 64 bits of the `content_hash` of each text."""
    digests = (hashlib.sha256(plain(x).encode("utf-8", "surrogatepass")).digest() for x in texts)
    return np.fromiter((int.from_bytes(x[:8], "big") for x in digests), np.uint64)


def _are_few(texts: Iterable[str]) -> bool:
    """Whether they have at most CLUSTERED_CHARACTERS together."""
    return all(total <= CLUSTERED_CHARACTERS for total in accumulate(map(len, texts)))


def _most(hashes: np.ndarray) -> int:
    """How many rows have the commonest hash."""
    return int(np.unique(hashes, return_counts=True)[1].max())


def _split_texts(examples: list[SourcedExample]) -> tuple[Callable[[], Iterator[str]], Message]:
    """What must not be on both sides: made one by one, each time anew."""
    first = examples[0].example
    if isinstance(first, ExtractiveQA):  # questions about one context would tell each other's answers
        contexts = [x.example for x in examples if isinstance(x.example, ExtractiveQA)]
        return lambda: (x.context for x in contexts), Message("by the hash of the context")
    if isinstance(first, AudioText):  # one sentence in several voices is the same sentence
        return lambda: (x.example.answer for x in examples), Message("by the hash of the transcript")
    return lambda: (x.example.input_text for x in examples), Message("by the hash of the input")
