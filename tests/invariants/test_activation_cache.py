"""The activation cache: a run with it equals a run without it, also when stopped, resumed, damaged or out of disk space."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from support.laws import attached, gap, loss_of
from support.models import save_model
from support.rows import make_rows, write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from weitiao.core.batch import FROZEN_STATES, Batch, select_segments
from weitiao.core.errors import Interrupted
from weitiao.core.events import Step
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Train
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.data.loader import Loader
from weitiao.model.adapters.module_replacement import is_linear
from weitiao.model.backbone import activation_cache
from weitiao.model.backbone.activation_cache import ActivationCache, choose_caching
from weitiao.model.backbone.block_backbone import BlockBackbone

FAMILIES = ("llama", "gpt2", "bert", "gemma3_text")


class Rows:
    """Encoded rows as a loader wants them."""

    tasks: tuple[str, ...] = ()
    fingerprint = "these"

    def __init__(self) -> None:
        self.rows = make_rows(3, (9, 5, 5, 13, 2, 7, 11, 4))
        self.lengths = np.array([len(row["input_ids"]) for row in self.rows])
        self.row_ids = np.zeros(len(self.rows), int)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i]


def runs(*_: object) -> None:
    raise AssertionError("a frozen layer ran")


class Quiet:
    """As much of a desk as filling needs."""

    def track(self, items: Any, words: str) -> Any:
        return items

    def warn(self, words: str) -> None:
        raise AssertionError(words)


def kept_of(model: TrainableModel, folder: Path, said: list[str] | None = None) -> ActivationCache:
    body = model.backbone
    assert isinstance(body, BlockBackbone)
    body.num_cached_layers = body.num_frozen_layers(tuple(model.trainable().values()))
    return ActivationCache(model, Rows(), folder, (said if said is not None else []).append)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_loss_and_gradients_as_full_forward(family: str, tmp_path: Path) -> None:
    found = []
    for keeps in (False, True):
        model = attached("freeze", family, num_layers=1)
        loader = Loader(Rows(), 1, batch_size=5)
        batches = loader[0]
        if keeps:
            kept = kept_of(model, tmp_path)
            assert kept.backbone.num_cached_layers == 2 and kept.fill(Quiet())
            batches = kept.add_states(batches)
            assert FROZEN_STATES in batches[0].more
            lowest = next(x for x in model.model.modules() if is_linear(x))
            lowest.register_forward_hook(runs)
        loss = sum(loss_of(model, batch) for batch in batches)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.trainable().items()}))
    (a, grads), (b, theirs) = found
    assert gap(a, b) <= 1e-6
    for name, g in grads.items():
        assert (g - theirs[name]).norm() <= 2e-5 * theirs[name].norm(), name


def test_batch_with_some_cached_rows(tmp_path: Path) -> None:
    """The guard looks at rows alone; their states go with them."""
    model = attached("freeze", "llama", num_layers=1)
    kept = kept_of(model, tmp_path)
    kept.fill(Quiet())
    (batch,) = kept.add_states(Loader(Rows(), 1, batch_size=5)[0])
    for i in range(5):
        one = select_segments(batch, [i])
        plain = Batch(one.input_ids, one.position_ids, one.labels, one.bounds)
        assert len(one.more[FROZEN_STATES]) == one.tokens
        assert gap(model.hidden(one), model.hidden(plain)) <= 1e-5


@pytest.mark.parametrize(
    ("method", "settings", "layers"),
    [
        ("freeze", {"num_layers": 1}, 2),
        ("freeze", {"num_layers": 2}, 1),
        ("freeze", {"num_layers": 3}, 0),
        ("freeze", {"num_layers": 1, "embedding": True}, 0),
        ("freeze", {"num_layers": 2, "unfreeze_every": 5}, 1),
        ("full", {}, 0),
        ("lora", {}, 0),
        ("lora", {"target_modules": r".*\.2\..*_proj"}, 2),
        ("prompt_tuning", {}, None),
        ("bitfit", {}, 0),
    ],
)
def test_cached_layers_have_no_trained_weight_below(
    method: str, settings: dict, layers: int | None, tmp_path: Path
) -> None:
    family = "gpt2" if method == "bitfit" else "llama"
    model = attached(method, family, **settings)
    if layers is not None:
        assert model.backbone.num_frozen_layers(tuple(model.trainable().values())) == layers
    choice = choose_caching(model, Rows(), tmp_path, 1e9, 3)
    if choice is None:
        assert not layers
    else:
        assert choice.value == "on" and str(choice.reason).startswith(f"{layers} frozen layers")
    again = choose_caching(model, Rows(), tmp_path, 1e9, 1)
    assert again is None, "once through the rows, nothing is gained"


def test_reason_when_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached("freeze", "llama", num_layers=1)
    small = choose_caching(model, Rows(), tmp_path, 100, 3)
    assert small and small.value == "off" and "the limit is" in str(small.reason)
    told = choose_caching(model, Rows(), tmp_path, 1e9, 3, Message("fgm changes the embeddings each time"))
    assert told and told.value == "off" and "fgm changes" in str(told.reason)
    monkeypatch.setattr(activation_cache.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    full = choose_caching(model, Rows(), tmp_path, 1e9, 3)
    assert full and full.value == "off" and "the disk has" in str(full.reason)


def test_damaged_row_recomputed(tmp_path: Path) -> None:
    said: list[str] = []
    kept = kept_of(attached("freeze", "llama", num_layers=1), tmp_path, said)
    kept.fill(Quiet())
    whole = kept.file.read_bytes()
    loader = Loader(Rows(), 1, batch_size=8)
    good = kept.add_states(loader[0])[0].more[FROZEN_STATES]
    kept.states[100] ^= 0xFF
    assert torch.equal(kept.add_states(loader[0])[0].more[FROZEN_STATES], good)
    assert len(said) == 1 and "damaged" in str(said[0]) and kept.file.read_bytes() == whole


def test_older_format_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_cache, "FORMAT", activation_cache.FORMAT - 1)
    assert kept_of(attached("freeze", "llama", num_layers=1), tmp_path).fill(Quiet())
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="computing it again"):
        kept_of(attached("freeze", "llama", num_layers=1), tmp_path).fill(Quiet())


def test_foreign_file_rebuilt_and_full_disk_reported(tmp_path: Path) -> None:
    class History(Quiet):
        def warn(self, words: str) -> None:
            said.append(words)

    said: list[str] = []
    kept = kept_of(attached("freeze", "llama", num_layers=1), tmp_path)
    assert kept.fill(History()) and kept.fill(History()) and not said
    kept.index_file.write_text(json.dumps({"key": "other", "checksums": []}))
    assert kept.fill(History()) and "computing it again" in str(said.pop())
    kept.file.write_bytes(b"short")
    assert kept.fill(History()) and "incomplete" in str(said.pop())
    nowhere = ActivationCache(kept.model, Rows(), tmp_path / "no" / "where", print)
    assert not nowhere.fill(History()) and "no activation cache" in str(said.pop())


# -- whole runs -------------------------------------------------------------------------------------------------------


def shape_of(tmp_path: Path, family: str = "llama") -> dict[str, Any]:
    train = {"steps": 9, "batch_size": 8, "micro_batch_tokens": 70, "save_every": 3}
    more: dict[str, Any] = {}
    if family == "bert":
        rows = [
            {"text": f"the quick brown fox {'jumps over the dog ' * (i % 3)}{i}", "label": "ab"[i % 2]} for i in range(24)
        ]
        data = [{"path": str(write_jsonl(tmp_path / "texts.jsonl", rows))}]
        more = {"base": str(save_model(tmp_path / "bert", "bert")), "data": data, "objective": "classification"}
        more["evaluate"] = {"metrics": ["loss"]}
    return {"method": {"name": "freeze", "num_layers": 1}, "train": train, **more}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_resume_bit_exact(family: str, train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of(tmp_path, family)
    run = train_tiny(**shape, out=str(tmp_path / "whole"))
    assert run.decisions["train.activation_cache"].value == "on"
    assert not (run.folder / "frozen.bin").exists() and not (run.folder / "frozen.json").exists()
    whole = run_contents(run)
    harm = {2: lambda f: None, 5: lambda f: f.unlink(), 7: lambda f: f.write_bytes(b"x" * f.stat().st_size)}
    for step, change in harm.items():
        out = tmp_path / f"stopped-{step}"
        with stop_at(step, monkeypatch), pytest.raises(Interrupted):
            train_tiny(**shape, out=str(out))
        assert (out / "frozen.bin").exists()
        change(out / "frozen.bin")
        torch.manual_seed(12345)
        assert_same_run(run_contents(train_tiny(again=True, **shape, out=str(out))), whole)


def test_same_losses_with_and_without_cache(train_tiny, tmp_path: Path) -> None:
    shape, curves = shape_of(tmp_path), []
    for keeps in ("auto", "off"):
        run: Run = train_tiny(
            **{**shape, "train": {**shape["train"], "activation_cache": keeps}}, out=str(tmp_path / keeps)
        )
        curves.append([x.loss for x in run.events(Step)])
    assert len(curves[0]) == 9
    assert max(abs(a - b) / b for a, b in zip(*curves)) <= 1e-5


def test_decision_kept_on_resume(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run does not check the disk again: its own file takes some of the space."""
    shape = shape_of(tmp_path, "bert")
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    with stop_at(4, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, out=str(tmp_path / "stopped"))
    full = SimpleNamespace(disk_usage=lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
    monkeypatch.setattr(activation_cache, "shutil", full)  # here alone: saving asks the disk, too
    (tmp_path / "stopped" / "frozen.json").write_text('{"key":')  # half written
    run = train_tiny(again=True, **shape, out=str(tmp_path / "stopped"))
    assert_same_run(run_contents(run), whole)
    assert not list(run.folder.glob("frozen.*"))


def test_method_that_changes_layers_not_cached(tmp_path: Path) -> None:
    """f_learning switched off is the base that it took something from: its lower layers are others."""
    model = attached("lora", "llama", target_modules=r".*\.2\..*_proj")
    assert choose_caching(model, Rows(), tmp_path, 1e9, 3).value == "on"
    set_enabled, weight = model.attachment.set_enabled, model.model.get_parameter("model.layers.0.mlp.up_proj.weight")

    def other(on: bool) -> None:
        set_enabled(on)
        weight.data.add_(0.01 if on else -0.01)

    model.attachment = replace(model.attachment, set_enabled=other)
    choice = choose_caching(model, Rows(), tmp_path, 1e9, 3)
    assert choice and choice.value == "off" and "with the method switched off" in str(choice.reason)


@pytest.mark.parametrize(("given", "wanted"), [(True, "auto"), (False, "off"), ("off", "off"), (2, 2.0), ("0.5", 0.5)])
def test_cache_size_limit(given: Any, wanted: Any) -> None:
    assert Train(activation_cache=given).activation_cache == wanted


@pytest.mark.parametrize("given", [-1, "much", None, float("nan")])
def test_invalid_cache_size_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="expected auto, off or a maximum size in GB") as refused:
        Train(activation_cache=given)
    assert len(refused.value.errors()) == 1
