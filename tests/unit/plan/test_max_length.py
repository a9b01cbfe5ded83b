"""Rows are never longer than the model has positions for."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from support.models import save_model
from support.rows import question_rows, write_jsonl
from weitiao.core.errors import RecipeError
from weitiao.core.recipe import make_recipe
from weitiao.core.run import Run
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.plan.compatibility import check_max_length


@pytest.mark.parametrize(
    ("family", "settings", "limit", "has_table"),
    [
        ("bert", {"max_position_embeddings": 512}, 512, True),
        ("roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512, True),
        ("xlm-roberta", {"max_position_embeddings": 514, "pad_token_id": 1}, 512, True),
        ("mpnet", {"max_position_embeddings": 514, "pad_token_id": 1}, 512, True),
        ("gpt2", {"n_positions": 1024}, 1024, True),
        ("bart", {"max_position_embeddings": 1024}, 1024, True),
        ("opt", {"max_position_embeddings": 2048}, 2048, True),
        ("llama", {"max_position_embeddings": 2048}, 2048, False),
        ("qwen3", {"max_position_embeddings": 32768}, 32768, False),
        ("modernbert", {"max_position_embeddings": 8192}, 8192, False),
        ("gpt_neox", {"max_position_embeddings": 2048}, 2048, False),
        ("deberta-v2", {"max_position_embeddings": 512, "position_biased_input": False}, 512, False),
        ("t5", {}, None, False),
        ("xlnet", {}, None, False),
    ],
)
def test_positions_of_each_family(family: str, settings: dict[str, int], limit: int | None, has_table: bool) -> None:
    architecture = architecture_of(AutoConfig.for_model(family, **settings))
    assert (architecture.max_length, architecture.has_position_table) == (limit, has_table)


OBJECTIVES = {
    "classification": {"text": "the fox", "label": "a"},
    "embedding": {"query": "the fox", "document": "the dog"},
    "token_classification": {"text": "the fox", "entities": [[4, 7, "who"]]},
    "question_answering": question_rows(2)[1],
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_longer_than_the_positions_is_refused_before_loading(train_tiny: Any, tmp_path: Path, objective: str) -> None:
    base = save_model(tmp_path / "bert", "bert")
    rows = [OBJECTIVES[objective]] * 16
    with pytest.raises(RecipeError, match="max_length 1,024: the base takes 256 tokens .* Write max_length: 256"):
        train_tiny(
            base=str(base), data=[str(write_jsonl(tmp_path / "rows.jsonl", rows))], objective=objective, max_length=1024
        )
    assert {x.get("name") for x in Run(tmp_path / "run").history if x["event"] == "phase"} <= {"open_base"}


def test_long_row_and_a_tokenizer_without_a_limit(train_tiny: Any, tmp_path: Path) -> None:
    """RoBERTa counts its positions from the padding token's id + 1."""
    base = save_model(tmp_path / "roberta", "roberta")
    rows = [{"text": f"the fox {i} " * (400 if i == 3 else 1), "label": "ab"[i % 2]} for i in range(16)]
    run = train_tiny(
        base=str(base), data=[str(write_jsonl(tmp_path / "rows.jsonl", rows))], objective="classification",
        train={"steps": 2, "batch_size": 16}, validation=0, method="full",
    )  # fmt: skip
    assert run.decisions["max_length"].value == 254 and run.is_finished


def test_longer_than_rotary_positions_is_a_warning() -> None:
    architecture = architecture_of(AutoConfig.for_model("llama", max_position_embeddings=256))
    recipe = make_recipe({"base": "b", "data": "d", "out": "o", "max_length": 1024})
    assert "trained with rows of up to 256 tokens" in str(check_max_length(recipe, architecture))
    assert check_max_length(recipe.model_copy(update={"max_length": 256}), architecture) is None
