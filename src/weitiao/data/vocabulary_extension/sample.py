"""Which of many texts merges are learnt from: by a hash of each, so that the order of the rows does not matter."""

import hashlib
from collections.abc import Iterable, Sequence

MAX_CHARACTERS = 5_000_000  # that merges are learnt from: half a minute, and a gigabyte


def by_hash(texts: Iterable[str]) -> list[str]:
    """Each text once, in an order that looks random and is always the same."""
    return sorted(set(texts), key=lambda x: hashlib.sha256(x.encode("utf-8", "surrogatepass")).digest())


def up_to(texts: Sequence[str], characters: int = MAX_CHARACTERS) -> list[str]:
    """The first texts, with so many characters in all; at least one."""
    chosen: list[str] = []
    for text in texts:
        characters -= len(text)
        if characters < 0 and chosen:
            break
        chosen.append(text)
    return chosen
