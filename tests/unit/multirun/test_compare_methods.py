"""compare-methods: every method on one task, the best first, with the reasons of those that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from weitiao.core.run import Run


def test_compare_methods(recipe_file: Any, tmp_path: Path) -> None:
    file = recipe_file(train={"steps": 3, "evaluate_every": 3, "learning_rate": "auto"}, evaluate={"metrics": ["loss"]})
    out = tmp_path / "compared"
    words = ["compare-methods", file, f"out={out}", "--methods", "ia3,bitfit,lora"]
    code, said = weitiao(*words)
    assert code == 0, said
    found = json.loads((out / "comparison.json").read_text())
    assert [x["method"] for x in found][-1] == "bitfit" and "add_missing: true" in found[-1]["refused"]
    for x in found[:2]:
        assert x["metric"] == "loss" and x["score"]["n"] == 5 and x["before"]["n"] == 5 and x["tokens_per_second"] > 0
        assert x["trainable_weights"] > 0 and 0 < x["size_mb"] < 1 and x["peak_mb"] > 50
        assert x["drift"] is not None and Run(out / x["method"]).is_finished
    assert found[0]["score"]["value"] <= found[1]["score"]["value"]
    lora = next(x for x in found if x["method"] == "lora")
    assert lora["trainable_weights"] > 10 * next(x for x in found if x["method"] == "ia3")["trainable_weights"]
    other, reference = sorted(found[:2], key=lambda x: x["reference"])
    less = other["difference"]  # row by row: the same rows, so it is known better than either figure
    assert (
        less["value"] == pytest.approx(other["score"]["value"] - reference["score"]["value"], abs=1e-9) and less["n"] == 5
    )
    assert less["high"] - less["low"] < (other["score"]["high"] - other["score"]["low"]) / 2
    assert reference["difference"] is None and reference["method"] == "ia3"
    page = (out / "comparison.html").read_text()
    assert page.count("<circle") == 2 and "bitfit" in page and "<script" not in page
    code, again = weitiao(*words, "--json")  # nothing is trained again
    assert code == 0 and json.loads(again) == found


def test_unknown_method_refused_before_training(recipe_file: Any, tmp_path: Path) -> None:
    code, said = weitiao("compare-methods", recipe_file(), f"out={tmp_path / 'x'}", "--methods", "lora,lorra")
    assert code == 2 and "there is no method called 'lorra'. Did you mean 'lora'?" in said
    assert not (tmp_path / "x").exists()


def test_runs_of_other_recipe_refused(recipe_file: Any, tmp_path: Path) -> None:
    words = ["compare-methods", recipe_file(), f"out={tmp_path / 'x'}", "--methods", "ia3"]
    assert weitiao(*words)[0] == 0
    code, said = weitiao(*words, "train.steps=2")
    assert code == 2 and "was trained with another recipe" in said
