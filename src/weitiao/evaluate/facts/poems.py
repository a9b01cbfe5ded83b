"""Poems: who wrote a poem, or how a line goes on. tangshisanbaishou.json of npm's chinese-poetry: 300 poems of the Tang.

Wrong options are poets of other poems here, or lines of the same form (five or seven characters in each half).
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitiao.core.errors import InvalidValue
from weitiao.evaluate.examination.fact_options import Fact, as_rows, nearest_first

MIN_POEMS = 4  # of a poet who is an option


def rows(files: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings: asked (author, next_line), seed, limit."""
    forms = json.loads(files[0].read_text(encoding="utf-8"))["content"]
    poems = [x for form in forms for x in form["content"] if x.get("author") and x.get("paragraphs")]
    seed, asked = settings.get("seed", 0), settings.get("asked", "author")
    if asked not in ("author", "next_line"):
        raise InvalidValue("asked: expected one of {known}, not {value!r}", known="author, next_line", value=asked)
    facts = _authors(poems, random.Random(seed)) if asked == "author" else _lines(poems, random.Random(seed))
    yield from as_rows(facts, seed, settings.get("limit"))


def _authors(poems: Sequence[Mapping[str, Any]], generator: random.Random) -> list[Fact]:
    counts = Counter(x["author"] for x in poems)
    known = [x for x, n in counts.items() if n >= MIN_POEMS]
    facts = []
    for i, x in enumerate(poems):
        if x["author"] not in known:
            continue
        similar = nearest_first(x["author"], [known], generator)
        facts.append(Fact(str(i), x["author"], similar, {"title": x["chapter"], "lines": "".join(x["paragraphs"][:2])}))
    return facts


def _lines(poems: Sequence[Mapping[str, Any]], generator: random.Random) -> list[Fact]:
    halves = [(i, line.rstrip("。").split("，")) for i, x in enumerate(poems) for line in x["paragraphs"]]
    couplets = {i: pair for i, pair in reversed(halves) if len(pair) == 2 and len(pair[0]) == len(pair[1]) in (5, 7)}
    facts = []
    for i, (first, second) in sorted(couplets.items()):
        same = [pair[1] for pair in couplets.values() if len(pair[1]) == len(second)]
        fields = {"title": poems[i]["chapter"], "author": poems[i]["author"], "line": first}
        facts.append(Fact(str(i), second, nearest_first(second, [same], generator), fields))
    return facts
