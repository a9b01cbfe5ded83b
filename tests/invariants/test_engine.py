"""The fast implementation has the losses of the plain one: transformers' layers, autograd, all logits at once."""

import json
from pathlib import Path

import pytest

from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.events import Step

STEPS = 5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("method", ["full", "lora", "freeze"])
def test_fast_and_reference_same_losses(family: str, method: str, train_tiny, tmp_path: Path) -> None:
    curves, blocks = [], []
    for implementation in ("auto", "reference"):
        run = train_tiny(
            base=str(save_model(tmp_path / family, family)),
            method={"name": method, **({"num_layers": 1} if method == "freeze" else {})},
            train={"steps": STEPS, "batch_size": 6, "implementation": implementation, "learning_rate": 1e-3},
            out=str(tmp_path / implementation),
        )
        curves.append([(x.loss, x.grad_norm) for x in run.events(Step)])
        blocks.append(run.decisions["model.block"].value)
    assert blocks[0] != "transformers" and blocks[1] == "transformers"
    assert len(curves[0]) == STEPS and curves[0][0][0] > curves[0][-1][0], "it learns"
    for (loss, norm), (expected, expected_norm) in zip(*curves):
        assert abs(loss - expected) <= 1e-5 * expected and abs(norm - expected_norm) <= 1e-4 * expected_norm


def test_fast_and_reference_same_losses_encoder(train_tiny, tmp_path: Path) -> None:
    rows = [{"text": f"the quick brown fox {'jumps ' * (i % 3)}{i}", "label": "ab"[i % 2]} for i in range(24)]
    base, data = save_model(tmp_path / "bert", "bert"), [{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}]
    config = json.loads((base / "config.json").read_text())
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # one draws for fewer places than the other
    (base / "config.json").write_text(json.dumps({**config, **without}))
    curves = []
    for implementation in ("auto", "reference"):
        run = train_tiny(
            base=str(base),
            data=data,
            method="lora",
            objective={"name": "classification", "pooling": "first", "dropout": 0.0},
            train={"steps": STEPS, "batch_size": 6, "implementation": implementation},
            evaluate={"metrics": ["loss"]},
            out=str(tmp_path / implementation),
        )
        curves.append([x.loss for x in run.events(Step)])
    assert len(curves[0]) == STEPS
    assert max(abs(a - b) / b for a, b in zip(*curves)) <= 1e-5
