"""Evaluation keeps what the metrics compare, not the scores of every row."""

import gc
import tracemalloc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from support.models import save_model
from support.rows import write_jsonl
from weitiao.core import intervals
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find
from weitiao.core.reporter import Reporter
from weitiao.data.prepare import Encoder
from weitiao.data.read import read_sources
from weitiao.evaluate import measure as measuring
from weitiao.evaluate.forward_pass import KEPT_PREDICTIONS

TEXT = "the quick brown fox jumps over the lazy dog and asks what time it is in paris"
ROWS = {
    "token_classification": lambda i: {"text": f"{TEXT} {i}", "entities": [[4, 9, f"kind{i % 6}"]]},
    "masked_lm": lambda i: {"text": f"{TEXT} {i}"},
    "classification": lambda i: {"text": f"{TEXT} {i}", "label": f"class {i % 100}"},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def held_out(open_model: Any, encoder: Path, folder: Path, name: str, count: int) -> tuple[Any, Any, Any]:
    """(model, objective, EvalSet) with many batches; classification with 1,000 classes."""
    file = write_jsonl(folder / f"{name}-{count}.jsonl", [ROWS[name](i) for i in range(count)])
    objective: Any = find("objective", name)()
    examples = read_sources((Source(path=str(file)),), objective, 0.0).examples
    if name == "classification":
        objective = objective.model_copy(update={"classes": tuple(f"class {i}" for i in range(1000)), "multi_label": False})
    else:
        objective = objective.fit([x.example for x in examples])
    model = open_model({"name": "lora", "rank": 2}, name if name == "masked_lm" else "sft", encoder)
    from weitiao.pipeline.load import heads_for

    for head, module in heads_for(model.model, objective, encoder)[0].items():
        model.heads[head] = module
    quiet = Reporter(Console(quiet=True))
    rows = Encoder(objective, model.processor, "", 128, objective.traits.overlong, quiet).hold_out(examples)
    return model, objective, rows


@pytest.mark.parametrize("name", ["token_classification", "masked_lm"])
def test_scores_of_a_batch_are_freed(
    open_model: Any, encoder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, objective, rows = held_out(open_model, encoder, tmp_path, name, 300)
    alive, most, real = list[weakref.ref](), [0], type(objective).predict

    def predict(self: Any, model: Any, batch: Any) -> list[Any]:
        gc.collect()
        most.append(sum(x() is not None for x in alive))
        predictions = real(self, model, batch)
        alive.extend(weakref.ref(x) for x in predictions)
        return predictions

    monkeypatch.setattr(type(objective), "predict", predict)
    monkeypatch.setattr("weitiao.data.prepare.EVAL_BATCH_TOKENS", 256)
    measured = measuring.measure(model, objective, rows, objective.traits.metrics)
    assert len(alive) == 300 and max(most) <= KEPT_PREDICTIONS + 40
    assert len(measured.row_results["choices"]) == 300


def test_memory_of_many_classes_does_not_grow(
    open_model: Any, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weitiao.data.prepare.EVAL_BATCH_TOKENS", 256)
    peaks = {}
    for count in (100, 500):
        model, objective, rows = held_out(open_model, encoder, tmp_path, "classification", count)
        tracemalloc.start()
        measuring.measure(model, objective, rows, ("loss", "accuracy", "f1"))
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (peaks[500] - peaks[100]) / 400 < 8_000, peaks  # bytes a row; 1,000 probabilities by name are 100,000


def test_draws_in_blocks_are_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.random.default_rng(0).integers(0, 333, (2000, 333))
    monkeypatch.setattr(intervals, "DRAWN_AT_ONCE", 5000)
    assert np.array_equal(np.concatenate(list(intervals.bootstrap_draws(333, 2000))), whole)
