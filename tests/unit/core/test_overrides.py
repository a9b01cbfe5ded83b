"""Dotted overrides on the command line: method.rank=32 below `method: lora`, list elements, parts that are not written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.recipes import RECIPE, read, recipe_error
from weitiao.core.recipe_sections import Source


def test_override_below_bare_name(tmp_path: Path) -> None:
    recipe: Any = read(tmp_path, RECIPE, "method.rank=32", "method.target_modules=[q_proj, v_proj]")
    assert (recipe.method.name, recipe.method.rank, recipe.method.target_modules) == ("lora", 32, ("q_proj", "v_proj"))


def test_override_below_missing_key(tmp_path: Path) -> None:
    plain = yaml.safe_load(RECIPE)
    del plain["train"], plain["method"]
    recipe: Any = read(tmp_path, yaml.safe_dump(plain), "train.optimizer.betas=[0.8, 0.9]", "method.alpha=7")
    assert (recipe.train.optimizer.name, recipe.train.optimizer.betas) == ("adamw", (0.8, 0.9))
    assert recipe.method.alpha == 7


@pytest.mark.parametrize(
    ("override", "look", "value"),
    [
        ("data.0.weight=0.5", lambda r: r.data[0].weight, 0.5),
        ("data.1.columns.prompt=ask", lambda r: r.data[1].columns["prompt"], "ask"),
        ("out=runs/other", lambda r: r.out, "runs/other"),
        ("train.max_grad_norm=null", lambda r: r.train.max_grad_norm, None),
        ("method=full", lambda r: r.method.name, "full"),
        ("method={name: lora, rank: 3}", lambda r: r.method.rank, 3),
        ("data=other.jsonl", lambda r: r.data[0].path, "other.jsonl"),
        ("train.optimizer=sgd", lambda r: r.train.optimizer.name, "sgd"),
        ("evaluate.metrics=[loss, f1]", lambda r: r.evaluate.metrics, ("loss", "f1")),
    ],
)
def test_dotted_overrides(tmp_path: Path, override: str, look: Any, value: Any) -> None:
    assert look(read(tmp_path, RECIPE, override)) == value


def test_override_below_single_source(tmp_path: Path) -> None:
    text = RECIPE[: RECIPE.index("data:")] + "data: a.jsonl\n" + RECIPE[RECIPE.index("method:") :]
    assert read(tmp_path, text, "data.weight=3").data[0] == Source(path="a.jsonl", weight=3)


@pytest.mark.parametrize("override", ["rank", "=3", ""])
def test_invalid_override_refused(tmp_path: Path, override: str) -> None:
    assert f"an override is written key=value, for example method.rank=32; this one is {override!r}" in recipe_error(
        tmp_path, RECIPE, override
    )


def test_override_unknown_key(tmp_path: Path) -> None:
    assert "unknown key 'train.epoch'. Did you mean 'epochs'?" in recipe_error(tmp_path, RECIPE, "train.epoch=3")
    assert "unknown key 'method.rnk'. Did you mean 'rank'?" in recipe_error(tmp_path, RECIPE, "method.rnk=3")


@pytest.mark.parametrize("override", ["data.5.weight=0.5", "data.first.weight=0.5"])
def test_override_missing_source(tmp_path: Path, override: str) -> None:
    assert override in recipe_error(tmp_path, RECIPE, override)
