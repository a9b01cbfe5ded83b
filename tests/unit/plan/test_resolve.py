"""plan: every automatic value follows from the recipe and the facts, with its reason, and is recorded once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.recipe_sections import Train, fixed_on_resume
from weitiao.core.run import Run
from weitiao.plan.resolve import Facts, Resolved, resolve, resolve_rows

CPU = torch.device("cpu")


def recipe(**changes: Any) -> Recipe:
    plain = {"base": "x", "data": "a.jsonl", "out": "run", "train": {}}
    return make_recipe({**plain, **changes})


def resolved(settings: Recipe, limit: int | None = 2048, **changes: Any) -> Resolved:
    facts = {
        "lengths": np.full(1000, 200), "source": np.zeros(1000, int), "num_layers": 12, "width": 576, "mlp_width": 1536,
        "dtype": torch.float32, "device": CPU, "has_validation": True, "count_steps": lambda weights, batch: 123,
    }  # fmt: skip
    limits = resolve_rows(settings, settings.objective, limit)
    return resolve(settings, settings.objective, limits, Facts(**{**facts, **changes}))


def test_everything_automatic() -> None:
    x = resolved(recipe())
    assert (x.max_length, x.overlong, x.batch) == (2048, "error", {"batch_tokens": 2048})
    assert (x.micro_batch_tokens, x.steps, x.learning_rate) == (1024, 123, 2e-4)
    assert (x.evaluate_every, x.save_every, x.gradient_checkpointing) == (12, 12, False)
    assert (x.source_weights, x.step, x.head_learning_rate) == ((1.0,), "accumulate", None)
    assert all(isinstance(d.reason, Message) and str(d.reason) and not d.requested for d in x.decisions)


def test_what_the_recipe_says_is_taken() -> None:
    train = {
        "batch_size": 8, "steps": 40, "learning_rate": 1e-3, "micro_batch_tokens": 512, "evaluate_every": 5,
        "save_every": 7, "gradient_checkpointing": "on", "guard": "off",
    }  # fmt: skip
    x = resolved(recipe(train=train, max_length=64, overlong="drop"), count_steps=pytest.fail)
    assert (x.max_length, x.overlong, x.batch, x.micro_batch_tokens) == (64, "drop", {"batch_size": 8}, 512)
    assert (x.steps, x.learning_rate, x.evaluate_every, x.save_every) == (40, 1e-3, 5, 7)
    assert x.gradient_checkpointing and all(d.requested for d in x.decisions)


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"width": 64}, "train.micro_batch_tokens", 4096),
        ({"dtype": torch.bfloat16}, "train.micro_batch_tokens", 1536),
        ({"lengths": np.full(1000, 3)}, "train.batch_tokens", 1024),
        ({"lengths": np.full(9000, 500), "source": np.zeros(9000, int)}, "train.batch_tokens", 16384),
        ({"lengths": np.array([20_000, 3]), "source": np.zeros(2, int)}, "train.batch_tokens", 20_000),
        ({"has_validation": False}, "train.evaluate_every", 0),
        ({"has_validation": False}, "train.save_every", 12),
        ({"count_steps": lambda weights, batch: 4}, "train.evaluate_every", 1),
    ],
)
def test_values_follow_from_facts(changes: dict[str, Any], key: str, value: int) -> None:
    decisions = {x.key: x.value for x in resolved(recipe(), **changes).decisions}
    assert decisions[key] == value


@pytest.mark.parametrize(("limit", "value"), [(None, 4096), (512, 512), (131072, 4096)])
def test_max_length_of_the_model(limit: int | None, value: int) -> None:
    assert resolved(recipe(), limit).max_length == value


def test_replay_makes_up_its_fraction() -> None:
    source = np.repeat([0, 1], [900, 100])
    x = resolved(recipe(replay={"path": "b.jsonl", "fraction": 0.25}), source=source)
    assert x.source_weights == (1.0, pytest.approx(3.0))  # 900 rows : 300 rows


def test_rows_that_depend_on_one_another_run_together() -> None:
    settings = recipe(objective="embedding")
    assert settings.objective.traits.batch_coupled and resolved(settings).micro_batch_tokens is None


def test_rows_of_one_target_are_not_split() -> None:
    with pytest.raises(RecipeError, match="overlong: classification has one target for a whole row"):
        resolved(recipe(objective="classification", overlong="split"))
    with pytest.raises(RecipeError, match="overlong: drop_turns is for conversations .* Use truncate or drop"):
        resolved(recipe(objective="classification", overlong="drop_turns"))
    assert resolved(recipe(overlong="drop_turns")).overlong == "drop_turns"


def test_values_are_recorded(train_tiny: Any) -> None:
    run: Run = train_tiny(train={"steps": 2})
    values = run.read("resolved.json")["values"]
    assert (values["steps"], values["batch"], values["max_length"]) == (2, {"batch_size": 4}, 256)
    decisions = run.decisions
    assert decisions["train.steps"].requested and decisions["model.trainable_weights"].value > 0
    assert decisions["max_length"].value == values["max_length"]


def test_fields_that_a_resumed_run_keeps() -> None:
    assert fixed_on_resume(Train) == {
        "learning_rate", "lr_schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "optimizer", "precision",
        "gradient_scale", "guard",
    }  # fmt: skip


def test_phases_of_a_run(train_tiny: Any, tmp_path: Path) -> None:
    from weitiao.core.events import Phase

    run: Run = train_tiny(train={"steps": 2})
    ended = [x.name for x in run.events(Phase) if x.status == "end"]
    assert ended == [
        "open_base", "read", "encode", "load", "preflight", "evaluate_before", "train", "evaluate_after", "report",
    ]  # fmt: skip
    assert next(x.total for x in run.events(Phase) if x.name == "train") == 2
