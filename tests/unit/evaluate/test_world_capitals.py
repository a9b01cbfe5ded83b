"""The exams that ship whole: capitals in English and Chinese."""

import csv
from collections import Counter

import pytest

from weitiao.core.exam import SHIPPED
from weitiao.pipeline.exam_data import open_exams


@pytest.mark.parametrize("language", ["en", "zh"])
def test_items_are_many_plausible_and_balanced(language: str) -> None:
    (exam,) = open_exams([f"world_capitals_{language}"])
    with open(SHIPPED / "capitals.csv", encoding="utf-8", newline="") as file:
        facts = {x["id"]: x for x in csv.DictReader(file)}
    region_of = {x[f"capital_{language}"]: x["region"] for x in facts.values()}
    assert len(region_of) == len(facts), "no two countries have one capital"
    assert len(exam.items) >= 150
    in_region = Counter()
    for x in exam.items:
        fact = facts[x.id]
        assert x.solved == fact[f"capital_{language}"]
        assert fact[f"country_{language}"] not in x.solved
        in_region[all(region_of[option] == fact["region"] for option in x.options)] += 1
    assert in_region[True] > 0.9 * len(exam.items)
    places = Counter(x.solution for x in exam.items)
    assert max(places.values()) - min(places.values()) <= 4
