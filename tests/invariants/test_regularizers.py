"""Every regularizer: zero strength changes nothing, batching does not matter, the added term is the paper's, and a
resumed run is bit-exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.laws import CLASSIFICATION, attached, perturb
from support.rows import batch_of, make_rows, write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from weitiao.core import events as logged
from weitiao.core.batch import IGNORE, Batch, select_segments
from weitiao.core.errors import Interrupted, RecipeError
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import create, find_module, names
from weitiao.core.regularizer import Regularized, Regularizer, regularized
from weitiao.core.trainable_model import HEAD, TrainableModel
from weitiao.plan.compatibility import check_regularizers
from weitiao.train.distributed import Distributed
from weitiao.train.step import Step

EVERY = names(Regularizer)
STRENGTH = {"r_drop": "alpha", "neftune": "alpha", "fgm": "weight", "kl_to_base": "beta", "l2_sp": "alpha", "mixout": "p"}
METHODS = {"l2_sp": "full", "mixout": "full"}
FAMILIES = ("llama", "bert")


def part(name: str, **settings: float) -> Regularizer:
    return create(Regularizer, name, **settings)


def put_together(name: str, family: str) -> tuple[TrainableModel, Objective, Batch]:
    """A tiny model, stirred, an objective that it can learn, and rows for it; skipped where the two cannot be joined."""
    objective: Objective = CLASSIFICATION if family == "bert" else create(Objective, "sft")
    method = METHODS.get(name, "lora")
    if why := part(name).refusal(objective, create(Method, method)):
        pytest.skip(str(why))
    model = attached(method, family)
    batch = batch_of(make_rows())
    if family == "bert":
        batch = replace(batch, targets={"class_id": torch.arange(len(batch.lengths)) % 3})
        objective = objective.model_copy(update={"dropout": 0.0})
    if method == "full":
        part(name).before_training(model)
    perturb(model)
    return model, objective, batch


def joined(model: TrainableModel, objective: Objective, *parts: Regularizer) -> Objective:
    """The objective with them; the model's beginning is already kept."""
    kept = model.initial_weights
    joint = regularized(objective, parts, model)
    model.initial_weights = kept
    assert isinstance(joint, Regularized)
    return joint


def gradients(model: TrainableModel, objective: Objective, batches: list[Batch]) -> dict[str, Tensor]:
    """Of the mean over all batches, as the loop takes it."""
    count = sum(sum(objective.counts(batch).values()) for batch in batches)
    for batch in batches:
        (sum(objective.loss(model, batch).totals.values()) / count).backward()
    found = {n: p.grad.clone() for n, p in model.trainable().items() if p.grad is not None}
    model.model.zero_grad()
    model.heads.zero_grad()
    return found


def far(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    whole = torch.cat([x.flatten() for x in b.values()]).norm()
    return float(torch.cat([(a[n] - b[n]).flatten() for n in a]).norm() / whole)


def test_every_regularizer_covered() -> None:
    assert set(EVERY) == set(STRENGTH) and len(EVERY) >= 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EVERY)
def test_zero_strength_changes_nothing(name: str, family: str) -> None:
    model, objective, batch = put_together(name, family)
    off = {STRENGTH[name]: 0.0, **({"beta": 0.0} if name == "l2_sp" else {})}
    with_it = gradients(model, joined(model, objective, part(name, **off)), [batch])
    assert far(with_it, gradients(model, objective, [batch])) < 1e-6
    strength = {"fgm": {"epsilon": 1.0, "weight": 1.0}, "mixout": {"p": 0.5}}
    strong = part(name, **strength.get(name, {STRENGTH[name]: 2.0}))
    model.model.train()
    for module in model.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    dropping = objective.model_copy(update={"dropout": 0.2}) if family == "bert" else objective
    torch.manual_seed(0)
    alone = gradients(model, dropping, [batch])
    torch.manual_seed(0)
    if name != "r_drop" or family == "bert":  # a Llama has no dropout: both passes are one
        assert far(gradients(model, joined(model, dropping, strong), [batch]), alone) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", [x for x in EVERY if x not in ("neftune", "mixout")])  # their noise is each batch's own
def test_independent_of_batching(name: str, family: str) -> None:
    model, objective, batch = put_together(name, family)
    joint = joined(model, objective, part(name))
    parts = [select_segments(batch, [0, 2]), select_segments(batch, [1]), select_segments(batch, [3, 4, 5])]
    assert far(gradients(model, joint, parts), gradients(model, joint, [batch])) < 1e-5


@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_kl_to_base_equals_torch(direction: str) -> None:
    model, objective, batch = put_together("kl_to_base", "llama")
    base = attached("lora")
    with torch.no_grad():
        here = batch.labels != IGNORE
        p, q = (m.logits(batch)[here].log_softmax(-1) for m in (model, base))
        expected = F.kl_div(q, p, reduction="sum", log_target=True)  # KL(p || q)
        if direction == "forward":
            expected = F.kl_div(p, q, reduction="sum", log_target=True)
        asked = create(Regularizer, "kl_to_base", beta=0.5, direction=direction)
        loss = joined(model, objective, asked).loss(model, batch)
        plain = objective.loss(model, batch)
    assert float(loss.totals["sft"] - plain.totals["sft"]) == pytest.approx(0.5 * float(expected), rel=1e-4)
    assert loss.notes["kl_to_base"] > 0
    with torch.no_grad():
        assert joined(base, objective, asked).loss(base, batch).notes["kl_to_base"] == pytest.approx(0, abs=1e-4)


def test_r_drop_equals_formula() -> None:
    model, objective, batch = put_together("r_drop", "bert")
    objective = objective.model_copy(update={"dropout": 0.5})
    model.model.train()
    torch.manual_seed(7)
    loss = joined(model, objective, part("r_drop", alpha=2.0)).loss(model, batch).totals["classification"]
    torch.manual_seed(7)
    p, q = (objective.log_probs(model, batch) for _ in range(2))
    right = batch.targets["class_id"]
    nll = (F.nll_loss(p, right, reduction="sum") + F.nll_loss(q, right, reduction="sum")) / 2
    apart = F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)
    assert float(apart.detach()) > 0.01
    assert float(loss.detach()) == pytest.approx(float((nll + 2.0 / 4 * apart).detach()), rel=1e-5)


def test_neftune_noise_scaled_by_row_length(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, batch = put_together("neftune", "llama")
    seen: list[Tensor] = []
    neftune = find_module(Regularizer, "neftune")
    real = neftune.changed_embeddings

    def watched(model, change, batch):
        def watching(embedded: Tensor, row: Tensor) -> Tensor:
            noisy = change(embedded, row)
            seen.append((noisy - embedded).flatten(0, -2))
            return noisy

        return real(model, watching, batch)

    monkeypatch.setattr(neftune, "changed_embeddings", watched)
    joined(model, create(Objective, "sft"), part("neftune", alpha=5.0)).loss(model, batch)
    (noise,) = seen
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        bound = 5.0 / ((b - a) * 32) ** 0.5
        assert 0.8 * bound < float(noise[a:b].abs().max()) <= bound * 1.0001


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_fgm_perturbation_radius_per_row(steps: int, method: str) -> None:
    model, batch = attached(method), batch_of(make_rows())
    perturb(model)
    objective: Objective = create(Objective, "sft")
    asked = part("fgm", epsilon=0.3, steps=steps)
    virtual_tokens, moves = len(model.attachment.virtual_tokens()), []
    climb = type(asked)._climb
    move = None
    for _ in range(steps):
        move = climb(asked, model, batch, lambda: objective.loss(model, batch), move)
    moves = move.flatten(0, -2).split([n + virtual_tokens for n in batch.lengths])
    lengths = [float(x.norm()) for x in moves]
    assert all(n <= 0.3 * 1.0001 for n in lengths) and max(lengths) > 0.29
    loss = joined(model, objective, asked).loss(model, batch)
    assert loss.notes["fgm"] > float(objective.loss(model, batch).totals["sft"].detach())


def test_l2_sp_pulls_towards_base() -> None:
    model, objective, batch = put_together("l2_sp", "llama")
    base = {n: p.clone() for n, p in attached("full").trainable().items()}
    loss = joined(model, objective, part("l2_sp", alpha=0.5)).loss(model, batch)
    way = sum(float((p - base[n]).square().sum()) for n, p in model.trainable().items())
    count = sum(objective.counts(batch).values())
    plain = float(objective.loss(model, batch).totals["sft"])
    assert float(loss.totals["sft"]) - plain == pytest.approx(0.25 * way * count, rel=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])  # whose head is scored once more in the backward pass
def test_mixout_equals_formula(family: str) -> None:
    """The loss is that of a model with the mixed weights, and its gradient goes through them (eq. 5)."""
    model, objective, batch = put_together("mixout", family)
    weights, base = model.trainable(), model.initial_weights
    torch.manual_seed(3)
    masks = {n: torch.rand_like(w) < 0.4 for n, w in weights.items() if not n.startswith(HEAD)}
    torch.manual_seed(3)
    joint = joined(model, objective, part("mixout", p=0.4))
    found, value = gradients(model, joint, [batch]), None
    own = {n: w.detach().clone() for n, w in weights.items()}
    assert all(torch.equal(w, own[n]) for n, w in model.trainable().items()), "the weights themselves stay"
    with torch.no_grad():
        for n, m in masks.items():
            weights[n].copy_((torch.where(m, base[n], own[n]) - 0.4 * base[n]) / 0.6)
    by_hand = gradients(model, objective, [batch])
    for n, m in masks.items():
        by_hand[n] = by_hand[n] * (~m) / 0.6
    value = float(sum(objective.loss(model, batch).totals.values()))
    with torch.no_grad():
        for n, w in weights.items():
            w.copy_(own[n])
    torch.manual_seed(3)
    assert float(sum(joint.loss(model, batch).totals.values())) == pytest.approx(value, rel=1e-5)
    assert far(found, by_hand) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"regularizers": "mixout"}, "mixout: method lora leaves the base's weights as they are"),
        (
            {"regularizers": "mixout", "method": "full", "train": {"gradient_checkpointing": "on"}},
            "gradient checkpointing would recompute with the original ones",
        ),
        ({"regularizers": ["kl_to_base", "mixout"], "method": "ln_tuning"}, "mixout .* kl_to_base would compare"),
        ({"regularizers": ["mixout", "r_drop"], "method": "full"}, "mixout .* r_drop would compare"),
        ({"regularizers": "l2_sp"}, "l2_sp: method lora leaves the base's weights as they are"),
        ({"regularizers": ["kl_to_base"], "objective": "classification"}, "the head of objective classification is new"),
        (
            {"regularizers": "neftune", "objective": "embedding"},
            "neftune: objective embedding repacks the texts of its rows",
        ),
        (
            {"regularizers": "l2_sp", "method": "full", "objective": {"name": "embedding", "mini_batch_size": 8}},
            "embedding computes its gradients with step gradient_cache",
        ),
    ],
)
def test_unsupported_combination_refused(changes: dict, words: str) -> None:
    recipe = make_recipe({"base": "b", "data": "d", "out": "o", **changes})
    with pytest.raises(RecipeError, match=words):
        check_regularizers(recipe)


@pytest.mark.parametrize("written", [["neftune", "neftune"], "r_dorp", [{"name": "r_drop", "alpha": -1}]])
def test_invalid_setting_refused(written: object) -> None:
    with pytest.raises(RecipeError, match="regularizers"):
        make_recipe({"base": "b", "data": "d", "out": "o", "regularizers": written})


def test_noted_values_per_window_and_token() -> None:
    """However the rows are batched; what l2_sp adds is the same for any number of tokens."""
    model, objective, batch = put_together("l2_sp", "llama")
    joint, way = joined(model, objective, part("l2_sp", alpha=0.5)), 0.0
    for name, weight in model.trainable().items():
        way += 0.25 * float((weight - model.initial_weights[name]).detach().square().sum())
    for window in (
        [batch],
        [select_segments(batch, [0, 2]), select_segments(batch, [1]), select_segments(batch, [3, 4, 5])],
    ):
        taken = find_module(Step, "accumulate").compute_gradients(model, joint, window, Distributed(torch.device("cpu")))
        assert taken.notes["l2_sp"] == pytest.approx(way, rel=1e-4)


def test_resume_bit_exact(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {
        "regularizers": [{"name": "neftune", "alpha": 3}, {"name": "fgm", "epsilon": 0.1}, "kl_to_base", "r_drop"],
        "method": {"name": "lora", "rank": 4, "dropout": 0.2},
        "train": {"steps": 5, "batch_size": 8, "micro_batch_tokens": 70, "save_every": 2},
    }
    whole = train_tiny(**shape, out=str(tmp_path / "whole"))
    lines = [x for x in whole.events(logged.Step)]
    assert all({"fgm", "kl_to_base", "r_drop"} <= x.notes.keys() for x in lines) and lines[-1].notes["kl_to_base"] > 0
    with stop_at(3, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, out=str(tmp_path / "stopped"))
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=str(tmp_path / "stopped"))), run_contents(whole))


def test_l2_sp_reference_kept_on_resume(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"regularizers": [{"name": "l2_sp", "alpha": 1.0}], "method": "full", "train": {"steps": 4, "save_every": 1}}
    whole = train_tiny(**shape, out=str(tmp_path / "whole"))
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, out=str(tmp_path / "stopped"))
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=str(tmp_path / "stopped"))), run_contents(whole))


def test_regularizer_with_head(train_tiny, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"the fox {i}", "label": i % 2} for i in range(24)])
    shape = {"base": str(tiny_models["bert"]), "data": [{"path": str(rows)}], "objective": "classification"}
    run = train_tiny(**shape, regularizers=["r_drop", "fgm", "neftune"], evaluate={"samples": 1})
    assert run.is_finished and all(x.notes["r_drop"] > 0 for x in run.events(logged.Step))
