"""Rows in memory as data: lists of dicts and frames become JSON lines; sources in recipe files are never taken for rows."""

import datetime
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weitiao.core.errors import InvalidValue, RecipeError
from weitiao.core.memory_rows import as_json_lines, is_rows
from weitiao.core.recipe import Recipe, make_recipe, read_recipe, with_rows_in, write_rows

ROWS = [{"text": "the fox", "label": 1}, {"text": "你好", "label": 2}]


def frame(library: str, **methods: Any) -> Any:
    """An object that looks like a frame of a library which is not installed."""
    kind = type("Frame", (), {"__module__": f"{library}.core", **methods})
    return kind()


PANDAS = frame("pandas", to_dict=lambda self, orient: ROWS if orient == "records" else None)
POLARS = frame("polars", iter_rows=lambda self, named: iter(ROWS))
DATASET = frame("datasets", features={"text": "string"}, __iter__=lambda self: iter(ROWS))


@pytest.mark.parametrize(
    "rows", [ROWS, tuple(ROWS), PANDAS, POLARS, DATASET], ids=["list", "tuple", "pandas", "polars", "hf"]
)
def test_rows_become_json_lines(rows: Any) -> None:
    assert is_rows(rows)
    assert [json.loads(x) for x in as_json_lines(rows)] == ROWS
    assert not {"pandas", "polars", "datasets"} & sys.modules.keys()


@pytest.mark.parametrize(
    "value", ["a.jsonl", ["a.jsonl", "b.jsonl"], [{"path": "a.jsonl"}], {"path": "a"}, [], None, Path("a")]
)
def test_sources_are_not_rows(value: Any) -> None:
    assert not is_rows(value)


def test_values_have_a_form_in_json() -> None:
    missing = type("NAType", (), {})()
    row = {
        "array": np.array([1, 2]),
        "number": np.float32(0.5),
        "nan": math.nan,
        "missing": missing,
        "date": datetime.date(2024, 5, 3),
        "path": Path("a.wav"),
        "nested": [{"role": "user", "content": "hi"}],
        1: True,
    }
    (line,) = as_json_lines([row])
    assert json.loads(line) == {
        "array": [1, 2], "number": 0.5, "nan": None, "missing": None, "date": "2024-05-03", "path": "a.wav",
        "nested": [{"role": "user", "content": "hi"}], "1": True,
    }  # fmt: skip


def test_value_without_a_form_names_the_row() -> None:
    with pytest.raises(InvalidValue, match="row 2: a value of type bytes cannot be written as JSON"):
        list(as_json_lines([{"a": 1}, {"a": b"x"}]))
    with pytest.raises(InvalidValue, match="choose one, for example dataset"):
        list(as_json_lines(frame("datasets", keys=lambda self: ["train"])))


def test_recipe_holds_rows_and_writes_them(tmp_path: Path) -> None:
    recipe = Recipe(base="b", data=ROWS, validation=ROWS[:1], evaluate={"data": ROWS[1:]}, out=str(tmp_path))
    same = make_recipe({"base": "b", "data": ROWS, "validation": ROWS[:1], "evaluate": {"data": ROWS[1:]}, "out": "x"})
    assert recipe.data[0].path.startswith("memory:") and recipe.fingerprint == same.fingerprint
    assert make_recipe({"base": "b", "data": ROWS[:1], "out": "x"}).fingerprint != recipe.fingerprint
    on_disk = with_rows_in(recipe, tmp_path)
    write_rows(on_disk)
    assert [json.loads(x) for x in (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()] == ROWS
    assert (tmp_path / "validation.jsonl").exists() and (tmp_path / "evaluate.jsonl").exists()
    (tmp_path / "recipe.yaml").write_text(on_disk.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "recipe.yaml").data[0].path == str(tmp_path / "data.jsonl")


def test_several_sources_in_memory(tmp_path: Path) -> None:
    recipe = Recipe(base="b", data=[PANDAS, "more.jsonl", POLARS], out="x")
    paths = [Path(x.path).name for x in with_rows_in(recipe, tmp_path).data]
    assert paths == ["data.jsonl", "more.jsonl", "data-3.jsonl"]


def test_override_keeps_rows() -> None:
    recipe = Recipe(base="b", data=ROWS, out="x").override(**{"method.rank": 3, "train.epochs": 1})
    assert recipe.method.as_recipe()["rank"] == 3 and len(recipe.data[0].rows or ()) == 2


def test_mapping_without_a_path_in_a_file_is_a_mistake(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: b\nout: x\ndata:\n  - {pth: a.jsonl}\n")
    with pytest.raises(RecipeError, match="unknown key 'data.0.pth'. Did you mean 'path'"):
        read_recipe(file)
