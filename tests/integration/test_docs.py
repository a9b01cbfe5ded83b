"""The pages of docs/ are true: links exist, recipes are valid, both languages have the same figures and code."""

import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import make_recipe

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES["bench/RESULTS.md"] = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
PAIRS = [(name, name.replace(".md", ".zh.md")) for name in PAGES if name.replace(".md", ".zh.md") in PAGES]
GENERATED = re.compile(r"<!-- (figures|pairs).*?-->.*?<!-- (figures: end|end of pairs) -->", re.S)  # tests write these


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M) if kind == language]


@pytest.mark.parametrize("name", PAGES)
def test_docs_links_exist(name: str) -> None:
    links = [x.split("#")[0] for x in re.findall(r"\]\(([^)\s]+)\)", PAGES[name]) if not x.startswith("http")]
    assert not [x for x in links if x and not ((ROOT / name).parent / x).exists()]


@pytest.mark.parametrize("name", PAGES)
def test_docs_recipes_are_valid(name: str) -> None:
    """Whole recipes as they are; pieces of one on top of a minimal recipe. Stages hold several recipes."""
    for block in blocks(PAGES[name], "yaml"):
        recipe = yaml.safe_load(block)
        for stage in recipe.pop("stages", [{}]):
            own = {key: value for key, value in stage.items() if key not in ("name", "handover")}
            try:
                make_recipe({"base": "x", "data": "x.jsonl", "out": "runs/x", **recipe, **own})
            except RecipeError as error:  # f_learning reads the run that it forgets
                assert "runs/old-facts" in str(error), block


@pytest.mark.parametrize("name", PAGES)
def test_docs_overrides_are_valid(name: str) -> None:
    """Dotted keys of every `weitiao train` and `weitiao compare-methods` command."""
    text = PAGES[name].replace("\n", " ")
    commands = re.findall(r"weitiao (?:train|compare-methods) [^`]*?\.yaml ([^`]*?)(?:`|#|\.venv/bin)", text)
    for command in commands:
        for word in shlex.split(command):
            key, equals, _ = word.partition("=")
            if equals and not word.startswith("-") and not key.startswith("stages."):
                assert key_exists(key), f"{name}: {word}"


def key_exists(key: str) -> bool:
    """Whether a dotted key is one of the recipe; settings of components and of sources are not looked up."""
    from weitiao.core.recipe import Recipe

    head, _, rest = key.partition(".")
    if head not in Recipe.model_fields:
        return False
    section = Recipe.model_fields[head].annotation
    return not rest or head in ("method", "objective", "data") or rest in getattr(section, "model_fields", {rest: None})


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_same_figures_and_code_in_both_languages(english: str, chinese: str) -> None:
    def figures(text: str) -> Counter[str]:
        return Counter(re.findall(r"\d+\.\d+(?! ?[亿万\d])", GENERATED.sub("", text)))

    def code(text: str) -> list[str]:
        lines = [line.split(" #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
        return [line for line in lines if line]

    assert figures(PAGES[english]) == figures(PAGES[chinese])
    assert code(PAGES[english]) == code(PAGES[chinese])
    recipes = [[yaml.safe_load(block) for block in blocks(PAGES[name], "yaml")] for name in (english, chinese)]
    assert recipes[0] == recipes[1]
