"""Stages: several trainings in a row, each from the previous result; and `init_from`, continuing with the same method."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonschema import Draft202012Validator
from safetensors.torch import load_file

from support.command import weitiao
from support.rows import chat_rows, write_jsonl
from support.runs import stop_at
from weitiao.core.errors import RecipeError
from weitiao.core.events import Step
from weitiao.core.recipe_file import read_plain
from weitiao.core.run import Run
from weitiao.core.shipped_recipes import find_recipe
from weitiao.multirun.stages import read_stages

LANGUAGE = [{"text": "the quick brown fox " * (2 + i % 3)} for i in range(24)]


@pytest.fixture
def staged(recipe_dict: dict, tmp_path: Path) -> Any:
    """staged(*stages, **shared) -> the file of a recipe with stages."""
    texts = write_jsonl(tmp_path / "texts.jsonl", LANGUAGE)
    usual = (
        {"name": "language", "objective": "causal_lm", "data": str(texts)},
        {"name": "answers", "train": {"learning_rate": 2e-2}},
        {"name": "polish", "handover": "continue"},
    )

    def make(*stages: Any, **shared: Any) -> Path:
        plain = {**recipe_dict, "out": str(tmp_path / "field"), "stages": list(stages or usual), **shared}
        plain["evaluate"] = {"metrics": ["loss"], "samples": 0}
        file = tmp_path / "stages.yaml"
        file.write_text(yaml.safe_dump(plain, sort_keys=False))
        return file

    return make


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best" / "weights.safetensors")


def test_vocabulary_is_extended_once(staged: Any) -> None:
    """A shared key is the first stage's: what is merged brings its tokenizer, a warm start needs the same settings."""
    stages = read_stages(staged(vocabulary={"add": 8}))
    added = [x.recipe.vocabulary and x.recipe.vocabulary.add for x in stages]
    assert added == [8, None, None]
    own = (
        {"name": "a", "objective": "causal_lm", "vocabulary": {"add": 8, "scripts": "han"}},
        {"name": "b", "objective": "causal_lm", "handover": "continue"},
        {"name": "c", "vocabulary": {"add": 4}},
    )
    first, second, third = (x.recipe.vocabulary for x in read_stages(staged(*own)))
    assert first is not None and first == second and third is not None and third.add == 4


def test_stage_starts_from_previous_result(staged: Any, tmp_path: Path) -> None:
    out = tmp_path / "field"
    code, said = weitiao("train", staged(), "train.steps=2")
    assert code == 0, said
    assert "stage 2 of 3: answers, merge with" in said and "stage 3 of 3: polish, continue with" in said
    first, second, third = (Run.open(out / name) for name in ("1-language", "2-answers", "3-polish"))
    assert [x.recipe.objective.name for x in (first, second, third)] == ["causal_lm", "sft", "sft"]
    assert second.recipe.base == str(out / "1-language") and second.recipe.init_from is None
    assert third.recipe.base == str(out / "1-language") and third.recipe.init_from == str(out / "2-answers")
    assert second.recipe.train.learning_rate == 2e-2 and second.recipe.train.batch_size == 4
    assert all(len(list(x.events(Step))) == 2 for x in (first, second, third))
    before, after = third.read("scores.json")["before"]["loss"], second.read("scores.json")["after"]["loss"]
    assert before["value"] == pytest.approx(after["value"], abs=1e-6), "the third begins with what the second ended with"
    assert weights(out / "2-answers").keys() == weights(out / "3-polish").keys()
    again = {x: (out / x / "events.jsonl").read_bytes() for x in ("1-language", "2-answers", "3-polish")}
    code, said = weitiao("train", staged(), "train.steps=2")
    assert code == 0 and said.count("finished already") == 3
    assert again == {x: (out / x / "events.jsonl").read_bytes() for x in again}, "nothing is trained twice"


def test_each_stage_is_checked_before_any_is_trained(staged: Any, tmp_path: Path) -> None:
    code, said = weitiao("check", staged(), "train.steps=2")
    assert code == 0, said
    assert said.count("the stage before is not trained yet") == 2 and "stage 3 of 3: polish" in said
    assert not (tmp_path / "field").exists()
    useless = write_jsonl(tmp_path / "none.jsonl", [{"x": 1}] * 8)
    code, said = weitiao("check", staged({"name": "language"}, {"name": "answers", "data": str(useless)}))
    assert code == 2 and "none.jsonl" in said


def test_recipe_with_stages_is_valid_for_an_editor() -> None:
    schema = json.loads(weitiao("schema")[1])
    recipe, _ = read_plain(find_recipe("smollm2/causal_lm_then_sft_lora"))
    valid = Draft202012Validator(schema).is_valid
    assert valid(recipe)
    assert not valid({key: x for key, x in recipe.items() if key != "stages"}), "without data"
    assert not valid({**recipe, "stages": [{"name": "text", "dota": "a.jsonl"}]})


def test_interrupted_stage_resumes(staged: Any, tmp_path: Path) -> None:
    out, file = tmp_path / "field", staged()
    assert weitiao("train", file, "train.steps=3", "train.save_every=1")[0] == 0
    whole = weights(out / "3-polish")
    for name in ("report.html", "scores.json"):  # as if it had been killed in step 3 of the second stage
        (out / "2-answers" / name).unlink()
    shutil.rmtree(out / "3-polish")
    states = sorted((out / "2-answers" / "checkpoints").glob("step-*"))
    shutil.rmtree(states[-1])
    code, said = weitiao("train", file, "train.steps=3", "train.save_every=1")
    assert code == 0 and said.count("finished already") == 1, said
    now = weights(out / "3-polish")
    assert all(torch.equal(now[name], x) for name, x in whole.items())


def test_interrupt_message_names_stage(staged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_at(2, monkeypatch):
        code, said = weitiao("train", staged(), "train.steps=3", "train.save_every=1")
    assert code == 130 and "stopped in stage 1 of 3, language: the same command resumes there" in said
    code, said = weitiao("train", staged(), "train.steps=3", "train.save_every=1")
    assert code == 0 and "resuming from step 2" in said


def test_override_for_one_stage(staged: Any, tmp_path: Path) -> None:
    stages = read_stages(staged(), ("train.steps=2", "stages.1.train.steps=5"))
    assert [x.recipe.train.steps for x in stages] == [2, 5, 2] and [x.handover for x in stages] == ["", "merge", "continue"]


def test_plain_recipe_has_no_stages(recipe_file: Any) -> None:
    assert read_stages(recipe_file()) == []


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["sft"], "stages is a list, each with a name"),
        ([{"name": "a", "handover": "merge"}], "the first stage has no stage before it"),
        ([{"name": "a"}, {"name": "b", "handover": "contniue"}], "Did you mean 'continue'"),
        ([{"name": "a"}, {"name": "b", "base": "x"}], "base follows from the stage before"),
        ([{"name": "a"}, {"name": "b", "objektive": "sft"}], r"\(b\): unknown key 'objektive'. Did you mean 'objective'"),
    ],
)
def test_invalid_stages_refused(staged: Any, stages: list, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        read_stages(staged(*stages))


def test_stage_of_other_recipe_not_overwritten(staged: Any, tmp_path: Path) -> None:
    file = staged({"name": "a"})
    assert weitiao("train", file, "train.steps=1")[0] == 0
    code, said = weitiao("train", file, "train.steps=2")
    assert code == 2 and "was trained with another recipe" in said


def test_start_needs_same_method(train_tiny: Any, tmp_path: Path, chat_file: Path) -> None:
    first = train_tiny(out=str(tmp_path / "first"))
    rows = write_jsonl(tmp_path / "more.jsonl", chat_rows(12, answers=("seven", "eight")))
    more = {"data": [{"path": str(rows)}], "init_from": str(first.folder), "out": str(tmp_path / "second")}
    second = train_tiny(**more)
    assert second.decisions["init_from"].value == str(first.folder)
    with pytest.raises(RecipeError, match="has another method.*base: "):
        train_tiny(**{**more, "method": {"name": "lora", "rank": 2}, "out": str(tmp_path / "third")})
    with pytest.raises(Exception, match="there is no run in"):
        train_tiny(**{**more, "init_from": str(tmp_path), "out": str(tmp_path / "fourth")})


def test_new_encoder_head_reported(train_tiny: Any, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"text": f"the fox {i}", "label": "abc"[i % 3]} for i in range(24)]
    few = [x for x in rows if x["label"] != "c"]
    shape = {
        "base": str(tiny_models["bert"]),
        "objective": "classification",
        "evaluate": {"metrics": ["loss"], "samples": 0},
    }
    first = train_tiny(**shape, data=[{"path": str(write_jsonl(tmp_path / "few.jsonl", few))}], out=str(tmp_path / "first"))
    data = [{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}]
    second = train_tiny(**shape, data=data, init_from=str(first.folder), out=str(tmp_path / "second"))
    assert "the head classes starts fresh" in str(second.decisions["init_from"].reason)
    renamed = [{**row, "label": {"a": "x", "b": "y"}[row["label"]]} for row in few]  # as many classes, but others
    for name, data, new in (("same", few, False), ("renamed", renamed, True)):
        place = write_jsonl(tmp_path / f"{name}.jsonl", data)
        third = train_tiny(**shape, data=[{"path": str(place)}], init_from=str(first.folder), out=str(tmp_path / name))
        assert ("starts fresh" in str(third.decisions["init_from"].reason)) == new
    reordered = {
        **shape,
        "objective": {"name": "classification", "classes": ["b", "a"]},
        "out": str(tmp_path / "reordered"),
    }
    data = [{"path": str(tmp_path / "few.jsonl")}]
    fourth = train_tiny(**reordered, data=data, init_from=str(first.folder))
    assert "the head classes starts fresh" in str(fourth.decisions["init_from"].reason)
