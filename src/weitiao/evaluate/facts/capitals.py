"""Capitals, from a file of facts that ships with weitiao: exams/capitals.csv.

Left out are countries whose name is in their capital's (Singapore, Kuwait City). Wrong options are capitals of the region.
"""

import csv
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from weitiao.evaluate.examination.fact_options import Fact, as_rows, nearest_first


def rows(files: Sequence[Path], settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Settings: language (en, zh), seed."""
    with open(files[0], encoding="utf-8", newline="") as file:
        countries = list(csv.DictReader(file))
    language, seed = settings.get("language", "en"), settings.get("seed", 0)
    generator, capital = random.Random(seed), f"capital_{language}"
    facts = []
    for x in countries:
        groups = [[y[capital] for y in countries if y["region"] == x["region"]], [y[capital] for y in countries]]
        fields = {"country": x[f"country_{language}"]}
        facts.append(Fact(x["id"], x[capital], nearest_first(x[capital], groups, generator), fields))
    yield from as_rows(facts, seed)
