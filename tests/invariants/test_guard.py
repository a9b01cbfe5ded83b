"""The guard on runs with faults, compared with the same runs without faults and without the guard."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.faults import LONG_TRAINING, loop_is_running, raise_learning_rate, random_labels_at
from support.runs import assert_same_run, events, final_loss, run_contents, stop_at
from weitiao.core.batch import Batch
from weitiao.core.errors import Interrupted, WeitiaoError
from weitiao.core.events import Skip
from weitiao.core.messages import Message
from weitiao.core.registry import find_module, names
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.train.rollback import Rollback
from weitiao.train.step import Step

Harm = Callable[[int, TrainableModel, list[Batch]], list[Batch]]


@pytest.fixture
def harm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """harm(before=..., after=...): called with (call, model, window) round every taking of gradients."""

    def set_submodule(before: Harm | None = None, after: Callable[[int, TrainableModel], None] | None = None) -> None:
        calls, learning = itertools.count(), loop_is_running(monkeypatch)
        for module in (find_module(Step, name) for name in names(Step)):

            def take(
                model: TrainableModel, objective: Any, window: list[Batch], *rest: Any, real=module.compute_gradients
            ) -> Any:
                call = next(calls) if learning() else -1
                result = real(model, objective, before(call, model, window) if before else window, *rest)
                if after:
                    after(call, model)
                return result

            monkeypatch.setattr(module, "compute_gradients", take)

    return set_submodule


def trained(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "best" / "weights.safetensors")


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("method", ["lora", "full", "bilora"])
def test_non_finite_gradient_element_skipped(train_tiny, harm, monkeypatch, method: str, value: float) -> None:
    """Nothing is touched: weights, moments, step and rate are bit-identical; one skip, and none after it."""
    record: dict[str, Any] = {}

    def spoil(call: int, model: TrainableModel) -> None:
        if call == 3:
            name, weight = list(model.trainable().items())[1]
            assert weight.grad is not None
            weight.grad.view(-1)[5] = value
            record["name"] = name

    harm(after=spoil)
    real = Rollback.skip_or_roll_back

    def everything_now(rescue: Rollback) -> dict[str, torch.Tensor]:
        tensors = rescue.state.tensors()
        return {f"{kind}:{name}": x.clone() for kind in ("weights", "optimizer") for name, x in tensors[kind].items()}

    def act(self: Rollback, *args: Any) -> None:
        self.saver.wait()
        before, step = everything_now(self), self.state.step
        newest = sorted((self.run.folder / "checkpoints").glob("step-*"))[-1]
        saved = {f"weights:{n}": x for n, x in load_file(newest / "weights.safetensors").items()}
        saved |= {f"optimizer:{n}": x for n, x in load_file(newest / "optimizer.safetensors").items()}
        assert saved.keys() == before.keys() and all(torch.equal(before[name], x) for name, x in saved.items())
        real(self, *args)
        after = everything_now(self)
        assert self.state.step == step and all(torch.equal(before[name], after[name]) for name in before)
        record["acted"] = True

    monkeypatch.setattr(Rollback, "skip_or_roll_back", act)
    run = train_tiny(method=method, train={"steps": 8, "save_every": 1, "learning_rate": 1e-3})
    (skip,) = events(run, "skip")
    assert record["acted"] and skip["step"] == 4 and record["name"] in str(Message.from_json(skip["reason"]))
    assert [x["step"] for x in events(run, "step")] == list(range(1, 9))
    assert all(bool(x.isfinite().all()) for x in trained(run).values())


def test_suspect_rows_named(train_tiny, harm, chat_file: Path) -> None:
    def spoil(call: int, model: TrainableModel) -> None:
        if call == 2:
            next(iter(model.trainable().values())).grad[0, 0] = math.nan

    harm(after=spoil)
    run = train_tiny(train={"steps": 5})
    suspects = run.read("suspects.jsonl")
    assert len(suspects) == 4 and all(x["step"] == 3 and math.isfinite(x["row_loss"]) for x in suspects)
    assert sorted((x["row_loss"] for x in suspects), reverse=True) == [x["row_loss"] for x in suspects]
    assert all(x["where"].startswith(f"{chat_file}, line ") and "<|im_start|>user" in x["text"] for x in suspects)
    assert sorted(x["row"] for x in suspects) == sorted(events(run, "skip")[0]["rows"])


def test_clean_run_unchanged_by_guard(train_tiny, tmp_path: Path) -> None:
    runs = {}
    for guard in ("on", "off"):
        runs[guard] = train_tiny(train={**LONG_TRAINING, "steps": 60, "guard": guard}, out=str(tmp_path / guard))
        assert not events(runs[guard], "skip") and not events(runs[guard], "rollback")
    a, b = (run_contents(run) for run in runs.values())
    assert_same_run(a, b)


def test_recovers_from_five_random_label_batches(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three close together, two later, clipping off. Guarded: skipped, and the result is the clean run's within 1 %.
    Unguarded it is visibly worse, or the test would say nothing."""
    shape = {"method": "full", "train": {**LONG_TRAINING, "max_grad_norm": None, "learning_rate": 2e-3}}
    losses = {"clean": final_loss(train_tiny(**shape, out=str(tmp_path / "clean")))}
    dirty = {110, 112, 114, 140, 156}
    for guard in ("on", "off"):
        with monkeypatch.context() as patch:
            random_labels_at(patch, dirty)
            run = train_tiny(**{**shape, "train": {**shape["train"], "guard": guard}}, out=str(tmp_path / guard))
            losses[guard] = final_loss(run)
            if guard == "on":
                assert {x["data_step"] - 1 for x in events(run, "skip")} == dirty and not events(run, "rollback")
    assert abs(losses["on"] / losses["clean"] - 1) <= 0.01, losses
    assert losses["off"] / losses["clean"] - 1 > 0.03, losses


@pytest.mark.parametrize(("method", "rate"), [("lora", 3e-3), ("lora", 1e-2), ("full", 2e-3)])
def test_recovers_from_learning_rate_spike(
    train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, rate: float
) -> None:
    """Guarded: at most two returns, and the result is the clean run's within 3 %. Unguarded it is visibly worse."""
    train = {**LONG_TRAINING, "learning_rate": rate}
    shape: dict[str, Any] = {} if method == "lora" else {"method": method}
    losses = {"clean": final_loss(train_tiny(**shape, train=train, out=str(tmp_path / "clean")))}
    for guard in ("on", "off"):
        with monkeypatch.context() as patch:
            raise_learning_rate(patch, begin=80)
            run = train_tiny(**shape, train={**train, "guard": guard}, out=str(tmp_path / guard))
            losses[guard] = final_loss(run)
            if guard == "on":
                assert len(events(run, "rollback")) <= 2 and events(run, "skip"), losses
    assert losses["on"] / losses["clean"] <= 1.03, losses
    assert losses["off"] / losses["clean"] > 1.1, losses


def test_resume_during_spike_bit_exact(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips, a return and its scars are the same whether or not the run was interrupted in between."""
    shape = {"method": "full", "train": {**LONG_TRAINING, "steps": 100, "learning_rate": 2e-3}}
    with monkeypatch.context() as patch:
        random_labels_at(patch, {80, 81, 82, 90})
        uninterrupted = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
        skipped = [x.data_step for x in Run(tmp_path / "whole").events(Skip)]
        assert len(skipped) >= 4
        for step in (79, 80, 84, 95):
            out = str(tmp_path / f"stopped-{step}")
            with stop_at(step, monkeypatch), pytest.raises(Interrupted):
                train_tiny(**shape, out=out)
            run = train_tiny(again=True, **shape, out=out)
            assert_same_run(run_contents(run), uninterrupted)
            assert [x.data_step for x in run.events(Skip)] == skipped


def test_non_finite_every_step_stops_run(train_tiny, harm, tmp_path: Path) -> None:
    def spoil(call: int, model: TrainableModel) -> None:
        if call >= 45:
            next(iter(model.trainable().values())).grad[0, 0] = math.nan

    harm(after=spoil)
    with pytest.raises(WeitiaoError, match="rollback number 3") as stopped:
        train_tiny(train=LONG_TRAINING)
    run = Run(tmp_path / "run")
    assert stopped.value.exit_code == 3 and run.status.state == "stopped"
    assert len(events(run, "rollback")) == 2 and all(bool(x.isfinite().all()) for x in trained(run).values())
    rates = [x["lr_factor"] for x in events(run, "rollback")]
    assert rates == [1.0, 0.5]


def test_non_finite_without_guard_stops_run(train_tiny, harm, tmp_path: Path) -> None:
    def spoil(call: int, model: TrainableModel) -> None:
        if call == 3:
            next(iter(model.trainable().values())).grad[0, 0] = math.nan

    harm(after=spoil)
    with pytest.raises(WeitiaoError, match="the guard is off") as stopped:
        train_tiny(train={"guard": "off", "steps": 8, "evaluate_every": 1})
    assert stopped.value.exit_code == 3
    assert all(bool(x.isfinite().all()) for x in trained(Run(tmp_path / "run")).values())
