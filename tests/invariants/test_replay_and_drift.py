"""Against forgetting: general rows mixed in by tokens, and the drift from the base at every validation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from support.laws import method_class
from support.parts import VARIANTS, method_config
from support.rows import chat_rows, write_jsonl
from weitiao.core.events import Validation
from weitiao.core.method import Method
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import names
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import as_base_model
from weitiao.evaluate import drift as drift_module
from weitiao.evaluate.drift import Drift
from weitiao.pipeline import assemble as pipeline


@pytest.fixture
def ready(recipe_dict: dict, tmp_path: Path) -> Any:
    """ready(**changes) -> all that training needs."""

    def make(**changes: Any) -> pipeline.TrainingSetup:
        recipe = make_recipe({**recipe_dict, **changes, "out": str(tmp_path / "ready")})
        run = Run.create(recipe)
        return pipeline.assemble(run, recipe, pipeline.Distributed(torch.device("cpu")), Reporter(Console(quiet=True)))

    return make


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_replay_share_of_tokens(ready: Any, tmp_path: Path, share: float) -> None:
    """Counted over the rows of thirty epochs, whatever the lengths on either side."""
    general = write_jsonl(tmp_path / "general.jsonl", chat_rows(40, answers=("the lazy dog and the quick fox " * 3,)))
    made = ready(replay={"path": str(general), "fraction": share})
    rows, loader = made.data.encoded.rows, made.loader
    tokens = [0, 0]
    for epoch in range(30):
        for step in loader.epoch(epoch):
            for row in step:
                tokens[int(rows.source[row])] += int(rows.lengths[row])
    assert tokens[1] / sum(tokens) == pytest.approx(share, abs=0.02)
    assert made.data.validation is not None
    assert {x.where.file for x in made.data.encoded.bad} == set()


def test_replay_rows_reported_and_never_validation(recipe_dict: dict, tmp_path: Path, train_tiny: Any) -> None:
    general = write_jsonl(tmp_path / "general.jsonl", chat_rows(40, answers=("the lazy dog",)))
    run = train_tiny(replay={"path": str(general), "fraction": 0.3})
    chosen = run.decisions["replay"]
    assert chosen.value == str(general) and str(chosen.reason).startswith("30% of all tokens")
    alone = train_tiny(out=str(tmp_path / "alone"))
    held = [r.decisions["validation.rows"].value for r in (run, alone)]
    assert held[0] == held[1]


@pytest.mark.parametrize("method", (*names(Method), *VARIANTS))
def test_drift_zero_at_base_then_grows(ready: Any, method: str) -> None:
    model = ready(method=method_config(method)).state.model
    drift = Drift(model)
    with as_base_model(model) as base:
        assert drift(base).value == pytest.approx(0, abs=1e-4)
    begins = drift(model).value  # a soft prompt begins at random, and that is drift already
    assert begins == pytest.approx(0, abs=1e-4) or not method_class(method).starts_at_base
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.2)
    far = drift(model)
    assert far.value > 2e-4 and far.low <= far.value <= far.high and far.n >= 8


@pytest.mark.parametrize("at_once", [2**23, 7 * 320])
def test_drift_equals_kl(ready: Any, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "MAX_LOGITS", at_once)  # all tokens in one piece; some at a time
    model = ready().state.model
    drift = Drift(model)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.05)
        now = model.logits(drift.batch).log_softmax(-1)
    assert (len(drift.base) > 1) == (at_once < 2**23)
    base = torch.cat(drift.base).float()
    by_hand = torch.nn.functional.kl_div(now, base, reduction="sum", log_target=True) / drift.batch.tokens
    assert drift(model).value == pytest.approx(float(by_hand), rel=1e-2)


def test_drift_in_every_validation(train_tiny: Any) -> None:
    drifts = [x.scores["drift"]["value"] for x in train_tiny().events(Validation)]
    assert len(drifts) == 2 and all(value > 0 for value in drifts)
