"""Every recipe that ships is valid, and runs two steps on tiny weights and rows of its kind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from support.models import save_model
from support.rows import chat_rows, question_rows, rated_rows, write_jsonl
from support.sandbox import skip_without_sandbox
from support.speech import save_whisper, speech_rows
from weitiao.core.events import Step
from weitiao.core.example import ExtractiveQA, Pair, SourceTarget, Text, TextLabel, TextScore, TokenTags
from weitiao.core.recipe import make_recipe, read_recipe
from weitiao.core.reporter import Reporter
from weitiao.multirun.stages import read_stages, run_stages
from weitiao.pipeline.train import train

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def test_recipes_found() -> None:
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_file_name_matches_objective_and_method(path: Path) -> None:
    """recipes/<family>/<objective>_<method>[_<what>].yaml; of stages: <objective>_then_<objective>_<method>.yaml"""
    recipes = [x.recipe for x in read_stages(path)] or [read_recipe(path)]
    (method,) = {x.method.name for x in recipes}
    name = f"{'_then_'.join(x.objective.name for x in recipes)}_{method}"
    assert path.stem == name or path.stem.startswith(f"{name}_")


def rows_for(example_type: type) -> list[dict]:
    """Forty rows of a kind."""
    made: dict[type, Any] = {
        Text: lambda i: {"text": "the quick brown fox " * (5 + i % 7)},
        SourceTarget: lambda i: {"source": f"the quick brown fox {i}", "target": f"jumps over {i}"},
        Pair: lambda i: {"query": f"the quick brown fox {i}", "document": f"jumps over {i}", "negative": f"dog {i}"},
        TextLabel: lambda i: {"text": f"the quick brown fox {i}", "label": i % 2},
        TokenTags: lambda i: {"text": f"the quick brown fox {i}", "entities": [[16, 19, "who"]]},
    }
    if example_type in made:
        return [made[example_type](i) for i in range(40)]
    return {TextScore: rated_rows, ExtractiveQA: question_rows}.get(example_type, chat_rows)(40)


@pytest.mark.parametrize("path", [x for x in RECIPES if not read_stages(x)], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_recipe_trains_two_steps(path: Path, tiny_llama: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    base = save_model(tmp_path / "bert", "bert") if recipe.objective.traits.needs_mlm_head else tiny_llama
    base = save_model(tmp_path / "t5", "t5") if recipe.objective.traits.needs_encoder_decoder else base
    sources = [
        {
            "path": str(write_jsonl(tmp_path / f"rows{task}.jsonl", rows_for(part.traits.example_type))),
            **({"task": task} if task else {}),
        }
        for task, part in recipe.objective.parts().items()
    ]
    evaluate: dict[str, Any] = {"data": None, "max_new_tokens": 4, "limit": 4}
    if path.stem == "embedding_full_movies":  # recommendation: no negatives of a row's own, and films to choose from
        recommended = [{"query": x["query"], "document": x["document"]} for x in rows_for(Pair)]
        sources = [{"path": str(write_jsonl(tmp_path / "recommended.jsonl", recommended))}]
        evaluate["corpus"] = str(write_jsonl(tmp_path / "corpus.jsonl", rows_for(Text)))
    if path.stem.startswith("sft_lora_code"):  # test rows with tests, that what a model of no sense writes may pass
        skip_without_sandbox()
        judged = [{**x, "tests": "pass"} for x in chat_rows(40)]
        evaluate["data"] = str(write_jsonl(tmp_path / "judged.jsonl", judged))
    if path.stem == "sft_lora_scope":  # some test rows with the fixed answer
        refused = [{**x, **({"refusal": "not mine"} if i % 2 else {})} for i, x in enumerate(chat_rows(40))]
        evaluate["data"] = str(write_jsonl(tmp_path / "refused.jsonl", refused))
    if path.parent.name == "whisper":
        base, sources = save_whisper(tmp_path / "whisper"), [{"path": str(speech_rows(tmp_path, 40))}]
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    plain |= {
        "base": str(base),
        "data": sources,
        "out": str(tmp_path / "run"),
        "max_length": 64 if path.parent.name == "whisper" else 200,
        "validation": 0.2,
    }
    plain["train"] = {**plain.get("train", {}), "steps": 2, "evaluate_every": 1, "precision": "fp32"}
    plain["evaluate"] = {**plain.get("evaluate", {}), **evaluate}
    run = train(make_recipe(plain), Reporter(Console(quiet=True)))
    assert run.is_finished
    assert [line.step for line in run.events(Step)] == [1, 2]
    assert json.loads((run.folder / "scores.json").read_text())["after"]["loss"]["n"] > 0
    assert (run.folder / "report.html").stat().st_size > 5000


@pytest.mark.parametrize("path", [x for x in RECIPES if read_stages(x)], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_stages_train_two_steps(path: Path, tiny_llama: Path, tmp_path: Path) -> None:
    """Each stage on rows of its kind, and on test rows where it has some."""
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    plain |= {"base": str(tiny_llama), "out": str(tmp_path / "runs"), "max_length": 200}
    plain["train"] = {**plain.get("train", {}), "steps": 2, "evaluate_every": 1, "precision": "fp32"}
    for i, (stage, read) in enumerate(zip(plain["stages"], read_stages(path))):
        rows = write_jsonl(tmp_path / f"rows{i}.jsonl", rows_for(read.recipe.objective.traits.example_type))
        if stage.get("vocabulary"):  # a few new tokens, of texts that the tiny base cuts into bytes
            rows = write_jsonl(rows, [{"text": f"我们在图书馆看书，图书馆里有 {n} 本书"} for n in range(40)])
            stage["vocabulary"] = {"add": 8}
        settings = {"data": str(rows), "max_new_tokens": 4, "limit": 4, "exams": []}
        stage |= {"data": str(rows), "validation": 0.2, "evaluate": {**stage.get("evaluate", {}), **settings}}
    file = tmp_path / "stages.yaml"
    file.write_text(yaml.safe_dump(plain), encoding="utf-8")
    runs = run_stages(read_stages(file), Reporter(Console(quiet=True)), print)
    assert [x.is_finished for x in runs] == [True] * len(plain["stages"])
    assert all(next(iter(x.scores["after"].values()))["n"] > 0 for x in runs)
