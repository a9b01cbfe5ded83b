"""f-learning: the old facts, plain training and every forget_lambda from the same base; scores with n; the best named."""

import json
from pathlib import Path
from typing import Any

from support.command import weitiao
from support.rows import chat_rows, write_jsonl
from weitiao.core.events import Step, Validation
from weitiao.core.run import Run


def test_f_learning_preset(recipe_file: Any, tmp_path: Path) -> None:
    old = write_jsonl(tmp_path / "old.jsonl", chat_rows(12, ("the lazy dog",)))
    other = write_jsonl(tmp_path / "other.jsonl", chat_rows(5, ("paris",)))
    out = tmp_path / "f"
    file = recipe_file(train={"steps": 3, "evaluate_every": 3, "learning_rate": 1e-2}, evaluate={"metrics": ["loss"]})
    words = ["f-learning", file, f"out={out}", "--forget-data", old, "--lambdas", "1.5", "--eval", f"others={other}"]
    code, said = weitiao(*words)
    assert code == 0, said
    assert said.count("held-out rows") == 3 and said.count("others") == 3 and "n = 5" in said and "lambda 1.5" in said
    ways = json.loads((out / "lambdas.json").read_text())
    assert [x["name"] for x in ways] == ["base", "plain", "lambda 1.5"]
    assert sum(x["best"] for x in ways) == 1 and not ways[0]["best"]
    best = min(ways[1:], key=lambda x: x["validation"])
    assert best["best"] and f"{best['name']} *" in said
    for way, folder in zip(ways[1:], ("plain", "lambda-1.5")):
        run = Run(out / folder)
        assert run.is_finished and way["scores"]["held_out"]["loss"]["n"] == 5
        assert way["scores"]["others"]["loss"]["value"] > 0
        kept = run.read("best/step.json")["step"]
        assert way["validation"] == next(x.loss for x in run.events(Validation) if x.step == kept)
    first = [next(Run(out / x).events(Step)).loss for x in ("plain", "lambda-1.5")]
    assert len(set(first)) == 2, "each begins elsewhere"
    assert Run(out / "lambda-1.5").recipe.method.as_recipe()["forget_lambda"] == 1.5
    code, again = weitiao(*words[:-2], "--json")  # nothing is trained again
    assert code == 0
    for way, was in zip(json.loads(again), ways):
        assert way == {**was, "scores": {"held_out": was["scores"]["held_out"]}}


def test_f_learning_invalid_arguments(recipe_file: Any, tmp_path: Path) -> None:
    old = write_jsonl(tmp_path / "old.jsonl", chat_rows(4))
    assert "--forget-data FILE" in weitiao("f-learning", recipe_file())[1]
    assert "numbers with commas" in weitiao("f-learning", recipe_file(), "--forget-data", old, "--lambdas", "a few")[1]
    stuck = recipe_file(method={"name": "adapter", "bottleneck": 2, "rank": 1})
    assert weitiao("f-learning", stuck, "--forget-data", old)[0] == 2
