"""What YAML would read as something else, or drop without a word: keys written twice, yes and no, dates, octal numbers."""

import json
import string
from pathlib import Path
from random import Random
from typing import Any

import pytest

from support.recipes import RECIPE, read, recipe_error
from weitiao.core.errors import RecipeError
from weitiao.core.recipe import make_recipe, read_recipe
from weitiao.core.recipe_yaml import dump_yaml, read_yaml

BASE = "base: b\ndata: a.jsonl\nout: o\n"


# -- a key twice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (BASE + "train: {epochs: 1}\ntrain: {learning_rate: 1e-3}\n", 5, "train is written twice, in lines 4 and 5"),
        (BASE + "method: {name: lora, rank: 4, rank: 64}\n", 4, "method.rank is written twice, in lines 4 and 4"),
        (BASE + "train:\n  epochs: 1\n  steps: 3\n  epochs: 2\n", 7, "train.epochs is written twice, in lines 5 and 7"),
        (BASE + "data: b.jsonl\n", 4, "data is written twice, in lines 2 and 4"),
        (BASE + "'seed': 1\nseed: 2\n", 5, "seed is written twice"),
        (BASE + "objective: {name: classification, class_weights: {no: 1, 'no': 2}}\n", 4, "weights.no is written twice"),
        (BASE + "evaluate:\n  data:\n    - {path: a, limit: 3, limit: 4}\n", 6, "evaluate.data.0.limit is written twice"),
    ],
)  # fmt: skip
def test_key_written_twice_is_refused_with_both_lines(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = recipe_error(tmp_path, text)
    assert error.startswith(f"{tmp_path}/r.yaml, line {line}: ") and words in error


def test_key_twice_in_json_and_in_override(tmp_path: Path) -> None:
    assert "seed is written twice, in lines 2 and 3" in recipe_error(tmp_path, '{"base": "b",\n"seed": 1,\n"seed": 2}')
    assert "rank is written twice" in recipe_error(tmp_path, RECIPE, "method={name: lora, rank: 4, rank: 64}")


def test_two_overrides_of_one_key_are_refused(tmp_path: Path) -> None:
    error = recipe_error(tmp_path, RECIPE, "train.epochs=1", "seed=2", "train.epochs=3")
    assert error == "on the command line: train.epochs=1 and train.epochs=3 set the same key. Write one of them."
    assert read(tmp_path, RECIPE, "seed=2", "seed=2").seed == 2


# -- nothing becomes something else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "NO", "Yes", "y", "n", "2024-05-03", "1:30", "0x1f", "0o17", "010"]
)
def test_text_stays_text(tmp_path: Path, word: str) -> None:
    classes: Any = read(tmp_path, BASE + f"objective: {{name: classification, classes: [{word}, other]}}\n").objective
    assert classes.classes == (word, "other")
    weights = f"objective: {{name: classification, class_weights: {{{word}: 3, other: 1}}}}\n"
    assert read(tmp_path, BASE + weights).objective.class_weights == {word: 3.0, "other": 1.0}  # pyright: ignore
    override: Any = read(tmp_path, BASE + "objective: seq2seq\n", f"objective.language={word}").objective
    assert override.language == word


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("2E5", 2e5), ("1.5", 1.5), (".5", 0.5), ("1_000", 1000), ("-7", -7), ("0", 0), ("null", None),
        ("~", None), ("", None), ("True", True), ("false", False), ("'1e-3'", "1e-3"), ("1.2.3", "1.2.3"), ("1e", "1e"),
        ("010", "010"), ("0b11", "0b11"), ("190:20:30", "190:20:30"), ("2001-12-14t21:59:43Z", "2001-12-14t21:59:43Z"),
        ("=", "="), ("<<", "<<"), ("!!str 12", "12"), ("!!int '12'", 12), ("none", "none"), ("Null", None),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    assert read_yaml(f"key: {text}", "r.yaml")[0] == {"key": value}


def test_number_with_leading_zero_is_decimal(tmp_path: Path) -> None:
    assert read(tmp_path, BASE + "train: {steps: 010}\n").train.steps == 10


@pytest.mark.parametrize(("text", "number"), [("yes", False), ("on", False), ("true", True)])
def test_a_word_is_no_number(tmp_path: Path, text: str, number: bool) -> None:
    expected = (
        "train.steps: expected a number, not true." if number else f"train.steps: expected a whole number, not {text!r}."
    )
    assert expected in recipe_error(tmp_path, BASE + f"train: {{steps: {text}}}\n")


@pytest.mark.parametrize("value", ["yes", "on", "true", "True"])
def test_switches_take_every_spelling(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, BASE + f"train: {{deterministic: {value}}}\n").train.deterministic is True


def test_on_and_off(tmp_path: Path) -> None:
    text = "train: {guard: off, gradient_checkpointing: on, activation_cache: on}\n"
    train = read(tmp_path, BASE + text).train
    assert (train.guard, train.gradient_checkpointing, train.activation_cache) == ("off", "on", "auto")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("objective: {name: classification, classes: [1, 2]}", "expected text, not 1. As text, write it in quotes: '1'."),
        ("objective: {name: classification, classes: [true, x]}", "As text, write it in quotes: 'true'."),
        ("train: {patience: none}", "not 'none'. For no value, write null."),
        ("train: {weight_decay: .inf}", "a finite number"),
        ("train: {learning_rate: .nan}", "a finite number"),
    ],
)
def test_hints(tmp_path: Path, line: str, words: str) -> None:
    assert words in recipe_error(tmp_path, BASE + line + "\n")


# -- files as editors write them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings(tmp_path: Path, encoding: str, newline: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(
        (BASE + "objective: {name: classification, classes: [好, 坏]}\n").replace("\n", newline).encode(encoding)
    )
    recipe: Any = read_recipe(file)
    assert recipe.objective.classes == ("好", "坏")


def test_other_encoding_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes((BASE + "# 中文\n").encode("gb18030"))
    with pytest.raises(RecipeError, match="line 4: not UTF-8. Save the file in UTF-8"):
        read_recipe(file)


@pytest.mark.parametrize("indent", [None, 1, "\t"])
@pytest.mark.parametrize("ascii", [True, False])
def test_json_recipe(tmp_path: Path, indent: Any, ascii: bool) -> None:
    plain = {
        "base": "b",
        "data": [{"path": "数据/😀.jsonl"}],
        "train": {"learning_rate": 1e-05, "patience": None},
        "out": "o\\/x",
    }
    file = tmp_path / "r.json"
    file.write_text(json.dumps(plain, indent=indent, ensure_ascii=ascii), encoding="utf-8")
    assert read_recipe(file) == make_recipe(plain)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n\tepochs: 1\n", "line 5: not readable as YAML: .* Indent with spaces: this line has a tab"),
        ("train：\n  epochs: 1\n", "not readable as YAML: .* full-width colon"),
        ("train: &a {epochs: *a}\n", "refers to itself"),
        ("seed: !!python/object/apply:os.system ['true']\n", "recipes have no tags"),
        ("seed: !!set {1, 2}\n", "recipes have no tags; this value has !!set"),
        ("seed: !!int x\n", "'x' is not of type int"),
        ("? [a, b]\n: 1\n", "a key is text"),
        ('chat_template: "\\ud83d"\n', "unpaired surrogate"),
        ("chat_template: a\x00b\n", "line 4: the character U\\+0000 is not allowed"),
        ("---\nbase: c\n", "a file holds one recipe"),
        ("train: {<<: 3}\n", "<< takes a mapping"),
    ],
)
def test_refused_in_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(BASE + text, encoding="utf-8", newline="")
    with pytest.raises(RecipeError, match=words):
        read_recipe(file)


def test_aliases_of_aliases_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "more than 100,000 values" in recipe_error(tmp_path, "\n".join(lines))


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    assert "nested too deeply" in recipe_error(tmp_path, "base: " + "[" * 5000 + "]" * 5000)


def test_anchor_and_merge_key(tmp_path: Path) -> None:
    text = (
        "base: b\ndata:\n  - &one {path: a.jsonl, limit: 3, weight: 2}\n  - {<<: *one, path: b.jsonl, weight: 1}\nout: o\n"
    )
    recipe = read(tmp_path, text)
    assert [(x.path, x.limit, x.weight) for x in recipe.data] == [("a.jsonl", 3, 2.0), ("b.jsonl", 3, 1.0)]
    changed = read(tmp_path, text.replace("{<<: *one, path: b.jsonl, weight: 1}", "*one"), "data.1.limit=9")
    assert [x.limit for x in changed.data] == [3, 9]  # a reference is a copy


def test_whatever_is_written_is_read_back() -> None:
    """A Run's recipe.yaml: every text and number comes back as it was."""
    random, texts = (
        Random(0),
        ["yes", "no", "1e-3", "010", "1:30", "2024-05-03", "~", "null", "", "<<", "=", "0x1f", ".5", "+1"],
    )
    signs = string.ascii_letters + string.digits + string.punctuation + " \t\n好😀é\u200b"
    for _ in range(1000):
        texts.append("".join(random.choices(signs, k=random.randint(0, 8))))
    numbers = [1e-5, 2.5e30, 1.0, 0.1, 7, -3, 1e22, None, True, False]
    plain = {"texts": texts, "numbers": numbers, "keys": dict.fromkeys(texts, 1)}
    assert read_yaml(dump_yaml(plain), "r.yaml")[0] == plain
