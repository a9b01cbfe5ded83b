"""Trained weights are kept in fp32 at any precision: in bf16, a weight above 1 would not change by a step of 2e-3."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from weitiao.core.method import Method
from weitiao.core.registry import names

OWN = {
    "full": {}, "freeze": {"num_layers": 1}, "bitfit": {"add_missing": True}, "ln_tuning": {},
    "lora": {"bias": "all"}, "qlora": {"bias": "lora_only"},
}  # fmt: skip
ELSE = ("adalora", "adapter", "dora", "ia3", "prefix_tuning", "prompt_tuning", "p_tuning", "p_tuning_v2", "vera", "bilora")


def test_every_method_covered() -> None:
    assert {*OWN, *ELSE, "peft", "f_learning"} == set(names(Method)), "those two train what another method trains"


@pytest.mark.parametrize("method", [*OWN, *ELSE])
def test_trained_weights_stay_fp32(method: str, train_tiny: Any) -> None:
    run = train_tiny(method={"name": method, **OWN.get(method, {})}, train={"steps": 2, "precision": "bf16"})
    kinds = {name: x.dtype for name, x in load_file(run.folder / "best" / "weights.safetensors").items()}
    trained = {name: kind for name, kind in kinds.items() if kind.is_floating_point}
    assert trained and set(trained.values()) == {torch.float32}, {n: k for n, k in trained.items() if k != torch.float32}


def test_small_step_moves_weights_above_one(train_tiny: Any) -> None:
    """Five steps of 1e-3 upon 1.0: in bf16 the next number above is 1.008, and each step would be rounded back."""
    moved = train_tiny(method="ln_tuning", train={"steps": 5, "precision": "bf16", "learning_rate": 1e-3})
    weights = load_file(moved.folder / "best" / "weights.safetensors")
    shares = [float((x != 1).float().mean()) for name, x in weights.items() if name.endswith("norm.weight")]
    assert shares and min(shares) > 0.9
