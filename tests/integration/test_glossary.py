"""docs/glossary.md has one line for every recipe key, and both languages have the same names."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from weitiao.core.mixing import Cap, Mixing
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Evaluate, GradientScale, Replay, Source, Train
from weitiao.core.registry import find, names
from weitiao.core.vocabulary_section import Vocabulary

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("glossary.md", "glossary.zh.md")}
GROUPS: dict[str, type[BaseModel]] = {
    "data": Source, "data.cap": Cap, "replay": Replay, "vocabulary": Vocabulary, "mixing": Mixing, "train": Train,
    "train.gradient_scale": GradientScale, "evaluate": Evaluate,
}  # fmt: skip


def recipe_keys() -> Iterator[str]:
    """Every key; groups only with their keys, except `data`, which may be a path alone."""
    yield from (key for key in Recipe.model_fields if key == "data" or key not in GROUPS)
    for group, model in GROUPS.items():
        yield from (path for key in model.model_fields if (path := f"{group}.{key}") not in GROUPS)


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("name", PAGES)
def test_glossary_has_every_recipe_key(name: str) -> None:
    keys = [row[0].strip("`") for row in rows(PAGES[name]) if ":" not in row[0]]
    assert sorted(keys) == sorted(recipe_keys())


def test_glossary_has_same_names_in_both_languages() -> None:
    english, chinese = ([re.findall("`(.*?)`", " ".join(row)) for row in rows(page)] for page in PAGES.values())
    assert english == chinese and len(english) > 60


def test_glossary_settings_exist() -> None:
    """`lora: rank` is a setting of the method lora, and so for every component that the second table names."""
    for row in rows(PAGES["glossary.md"]):
        components, colon, settings = row[0].strip("`").removeprefix("regularizers: ").partition(": ")
        for component in components.split(", ") if colon and components != "method" else ():
            kind = next(kind for kind in ("method", "objective", "regularizer") if component in names(kind))
            assert set(settings.split(", ")) <= set(find(kind, component).model_fields), row[0]
