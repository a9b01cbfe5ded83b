"""Several results made into one: the papers' definitions by hand, and PEFT where it means the same."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.models import CHATML, save_model
from support.parts import method_config
from support.rows import chat_rows, write_jsonl
from weitiao.core.errors import ModelError, RecipeError, RunError
from weitiao.core.method import Method
from weitiao.core.registry import names
from weitiao.core.reporter import Reporter
from weitiao.deploy.merging.combine import (
    MERGE_METHODS,
    MergeMethod,
    concatenate_loras,
    disjoint_mean,
    drop_and_rescale,
    trim,
)
from weitiao.pipeline import inference as results
from weitiao.pipeline import merging

IDS = torch.tensor([[5, 9, 40, 200, 17, 17, 3, 64]])
DESK = Reporter(Console(quiet=True))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def combine(runs: list, out: Path, how: str, weights: tuple = (), density: float | None = None, seed: int | None = None):
    targets = [str(getattr(run, "folder", run)) for run in runs]
    return merging.merge_several(targets, str(out), DESK, MergeMethod.make(how, len(targets), weights, density, seed))


@pytest.fixture
def pair(train_tiny: Any, tmp_path: Path) -> list:
    """Two LoRAs of different rank, scale, layers and rows."""
    rows = write_jsonl(tmp_path / "b.jsonl", chat_rows(24, ("seven wizards", "liquid", "你好")))
    second = {"name": "lora", "rank": 3, "alpha": 9, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]}
    return [train_tiny(), train_tiny(method=second, data=[{"path": str(rows)}], seed=3, out=str(tmp_path / "run-b"))]


def theta(target: Any, tmp_path: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a merged result."""
    merging.merge_run(str(target), str(tmp_path / name))
    return dict(AutoModelForCausalLM.from_pretrained(tmp_path / name).named_parameters())


def taus(runs: list, base: Path, tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    zero = dict(AutoModelForCausalLM.from_pretrained(base).named_parameters())
    merged = [theta(run.folder, tmp_path, f"theta-{i}") for i, run in enumerate(runs)]
    return [{name: x.detach() - zero[name].detach() for name, x in one.items()} for one in merged]


# -- the definitions, by hand -----------------------------------------------------------------------------------------


def flat(change: dict[str, torch.Tensor]) -> list[float]:
    return [float(x) for name in sorted(change) for x in change[name].flatten()]


def ties_by_hand(vectors: list[list[float]], weights: tuple[float, ...]) -> list[float]:
    """Elect and merge, value by value (arXiv 2306.01708, sec. 3, steps 2 and 3)."""
    merged = []
    for values in zip(*vectors):
        mass = sum(values)
        kept = [w * x for w, x in zip(weights, values) if (x > 0 and mass > 0) or (x < 0 and mass < 0)]
        merged.append(sum(kept) / len(kept) if kept else 0.0)
    return merged


def trim_by_hand(vector: list[float], density: float) -> list[float]:
    best = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))[: max(1, int(density * len(vector)))]
    return [x if i in set(best) else 0.0 for i, x in enumerate(vector)]


@pytest.fixture
def three() -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    first = [{"a": torch.randn(4, 5), "b": torch.randn(7)} for _ in range(2)]
    return [*first, {"b": torch.randn(7)}]  # the third did not change `a`


def full(change: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(4, 5), **change}


WEIGHTS = (0.5, 2.0, -1.0)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.6, 1.0])
def test_ties_equals_definition(three: list, density: float) -> None:
    weights = (0.5, 2.0, 1.0)
    got = MergeMethod.make("ties", 3, weights, density, None).combine(three)
    wanted = ties_by_hand([trim_by_hand(flat(full(x)), density) for x in three], weights)
    assert flat(got) == pytest.approx(wanted, abs=1e-6)


def test_sum_and_average_equal_definition(three: list) -> None:
    vectors = [flat(full(x)) for x in three]
    got = MergeMethod.make("task_arithmetic", 3, WEIGHTS, None, None).combine(three)
    assert flat(got) == pytest.approx([sum(w * x for w, x in zip(WEIGHTS, v)) for v in zip(*vectors)], abs=1e-6)
    got = MergeMethod.make("linear", 3, (1.0, 2.0, 5.0), None, None).combine(three)
    assert flat(got) == pytest.approx([(a + 2 * b + 5 * c) / 8 for a, b, c in zip(*vectors)], abs=1e-6)
    assert MergeMethod.make("linear", 4, (), None, None).weights == (0.25,) * 4


def test_dare_drops_and_rescales_deterministically(three: list) -> None:
    """Each value is zero or itself / density; the same seed drops the same values; the mean is kept."""
    kept = drop_and_rescale(three[0], 0.25, torch.Generator().manual_seed(1))
    for name, x in three[0].items():
        assert bool(((kept[name] == 0) | torch.isclose(kept[name], x / 0.25)).all())
    one, two, other = (flat(MergeMethod.make("dare_linear", 3, WEIGHTS, 0.5, seed).combine(three)) for seed in (4, 4, 5))
    assert one == two != other
    many = {"x": torch.ones(200_000)}
    mean = drop_and_rescale(many, 0.1, torch.Generator().manual_seed(0))["x"].mean()
    assert abs(float(mean) - 1) < 0.03  # five standard errors: sqrt(0.9 / 0.1 / 200000) = 0.0067
    assert flat(MergeMethod.make("dare_linear", 3, WEIGHTS, 1.0, 0).combine(three)) == pytest.approx(
        flat(MergeMethod.make("task_arithmetic", 3, WEIGHTS, None, None).combine(three)), abs=1e-6
    )


def test_dare_ties_elects_among_kept(three: list) -> None:
    random = torch.Generator().manual_seed(7)
    left = [flat(full(dict(drop_and_rescale(x, 0.5, random)))) for x in three]
    got = MergeMethod.make("dare_ties", 3, (), 0.5, 7).combine(three)
    assert flat(got) == pytest.approx(ties_by_hand(left, (1.0, 1.0, 1.0)), abs=1e-6)


def test_ties_cancelling_values_zero() -> None:
    assert disjoint_mean(torch.tensor([[1.0, 2.0], [-1.0, 3.0]]), torch.ones(2)).tolist() == [0.0, 2.5]
    assert trim({"x": torch.tensor([1.0, -4.0, 2.0])}, 0.01, 3)["x"].tolist() == [0.0, -4.0, 0.0]


# -- real adapters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "weights"), [("linear", ()), ("linear", (3.0, 1.0)), ("task_arithmetic", ()), ("task_arithmetic", (1.5, -0.5))]
)
def test_sum_of_loras_is_lora(pair: list, tiny_llama: Path, tmp_path: Path, how: str, weights: tuple) -> None:
    """base + sum w_i tau_i; what is written opens here and in PEFT with equal logits."""
    made = combine(pair, tmp_path / "one", how, weights)
    assert str(made.form).startswith("a LoRA of rank 7 in PEFT's format") and made.gap <= 1e-5
    shares = weights or ((1.0, 1.0) if how == "task_arithmetic" else (0.5, 0.5))
    shares = tuple(w / sum(shares) for w in shares) if how == "linear" else shares
    plain, changes = AutoModelForCausalLM.from_pretrained(tiny_llama), taus(pair, tiny_llama, tmp_path)
    first = logits(plain)
    for name, weight in plain.named_parameters():
        weight.data += sum(w * tau[name] for w, tau in zip(shares, changes))
    wanted = logits(plain)
    assert gap(first, wanted) > 1e-2
    opened = results.open_model(str(tmp_path / "one"), "fp32")
    assert gap(logits(opened.model.model), wanted) <= 1e-5
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(tmp_path / "one"))
    assert gap(logits(theirs), wanted) <= 1e-5


def test_sum_equals_peft_cat(pair: list, tiny_llama: Path, tmp_path: Path) -> None:
    combine(pair, tmp_path / "one", "task_arithmetic", (0.7, 0.3))
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_llama), str(pair[0].folder / "adapter"), "a"
    )
    model.load_adapter(str(pair[1].folder / "adapter"), "b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="cat")
    model.set_adapter("both")
    opened = results.open_model(str(tmp_path / "one"), "fp32")
    assert gap(logits(opened.model.model), logits(model.eval())) <= 1e-5


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_ties_equals_peft(train_tiny: Any, tiny_llama: Path, tmp_path: Path, density: float) -> None:
    """PEFT trims each matrix alone, so the two mean the same where there is one; its SVD keeps every rank here."""
    only = {"name": "lora", "rank": 4, "target_modules": r".*layers\.1\.mlp\.up_proj"}
    runs = [train_tiny(method=only, seed=seed, out=str(tmp_path / f"run-{seed}")) for seed in (1, 2)]
    made = combine(runs, tmp_path / "one", "ties", (0.7, 0.6), density)
    assert str(made.form) == "a merged model (the result of ties is not low-rank)" and made.gap <= 1e-5
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = peft.PeftModel.from_pretrained(model, str(runs[0].folder / "adapter"), "a")
    model.load_adapter(str(runs[1].folder / "adapter"), "b")
    options = {"combination_type": "ties_svd", "svd_rank": 32, "density": density}
    model.add_weighted_adapter(["a", "b"], [0.7, 0.6], "both", **options)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    change = (ours.model.layers[1].mlp.up_proj.weight - base.model.layers[1].mlp.up_proj.weight).detach()
    theirs = layer.get_delta_weight("both").detach()
    assert float((change - theirs).abs().max() / theirs.abs().max()) <= 1e-5
    assert 0 < float((theirs.abs() > 1e-8).float().mean()) < 1


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_svd_equals_peft(pair: list, tiny_llama: Path, tmp_path: Path, rank: int) -> None:
    """The best approximation of a rank: PEFT's matrices give the same change, and numpy's singular values the energy."""
    folder = tmp_path / "one"
    targets = [str(run.folder) for run in pair]
    made = merging.merge_several(targets, str(folder), DESK, MergeMethod.make("svd", 2, (0.7, 0.3), rank=rank))
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = peft.PeftModel.from_pretrained(model, str(pair[0].folder / "adapter"), "a")
    model.load_adapter(str(pair[1].folder / "adapter"), "b")
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "both", combination_type="svd", svd_rank=rank)
    ours = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), str(folder))
    total = kept = 0.0
    shares = []
    for layer in range(2):
        for part in ("self_attn.q_proj", "mlp.down_proj"):  # which both changed: PEFT leaves others out
            name = f"base_model.model.model.layers.{layer}.{part}"
            theirs = model.get_submodule(name).get_delta_weight("both")
            torch.testing.assert_close(ours.get_submodule(name).get_delta_weight("default"), theirs, rtol=0, atol=1e-5)
    whole = concatenate_loras([x for x in adapters_of(pair)], (0.7, 0.3))[1]
    for a in [x for x in whole if x.endswith("lora_A.weight")]:
        squares = torch.linalg.svdvals((whole[a.replace("lora_A", "lora_B")] @ whole[a]).double()).square()
        kept, total = kept + float(squares[:rank].sum()), total + float(squares.sum())
        shares.append(float(squares[:rank].sum() / squares.sum()))
    assert made.form.fields["energy"] == pytest.approx(kept / total, rel=1e-5)
    assert made.form.fields["least"] == pytest.approx(min(shares), rel=1e-5) and made.gap <= 1e-5
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank


def adapters_of(runs: list) -> list:
    folders = [run.folder / "adapter" for run in runs]
    return [
        (json.loads((x / "adapter_config.json").read_text()), load_file(x / "adapter_model.safetensors")) for x in folders
    ]


def test_svd_of_something_else_refused(pair: list, train_tiny: Any, tmp_path: Path) -> None:
    full = train_tiny(method="full", train={"steps": 1}, out=str(tmp_path / "full"))
    with pytest.raises(ModelError, match="method svd: it takes plain LoRAs only"):
        combine([pair[0], full], tmp_path / "one", "svd")


@pytest.mark.parametrize("how", ["ties", "dare_linear", "dare_ties"])
def test_pruned_merge_equals_definition(pair: list, tiny_llama: Path, tmp_path: Path, how: str) -> None:
    made = combine(pair, tmp_path / "one", how, (), 0.5)
    assert made.gap <= 1e-5 and (tmp_path / "one" / "model.safetensors").is_file()
    tau = [{n: x for n, x in one.items() if bool(x.any())} for one in taus(pair, tiny_llama, tmp_path)]
    wanted = MergeMethod.make(how, 2, (), 0.5, None).combine(tau)
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_llama).named_parameters())
    got = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "one").named_parameters())
    for name, weight in base.items():
        torch.testing.assert_close(got[name], weight + wanted.get(name, 0.0), rtol=0, atol=1e-6)
    assert sum(not torch.equal(got[n], base[n]) for n in base) == len(wanted) > 10
    if how != "ties":
        combine(pair, tmp_path / "again", how, (), 0.5)
        again = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "again").named_parameters())
        assert all(torch.equal(got[name], again[name]) for name in got), "the same seed gives the same bits"


@pytest.mark.parametrize("method", names(Method))
def test_every_method_merged_or_refused(train_tiny: Any, tmp_path: Path, method: str) -> None:
    runs = [
        train_tiny(method=method_config(method), train={"steps": 1}, seed=s, out=str(tmp_path / f"run-{s}")) for s in (1, 2)
    ]
    try:
        made = combine(runs, tmp_path / "one", "linear")
    except ModelError as refused:
        assert method in str(refused)
        assert not (tmp_path / "one").exists()
        return
    assert made.gap <= 1e-5
    assert str(made.form).startswith(
        "a LoRA" if method in ("lora", "bilora") else "a merged model (not all of them are plain LoRAs)"
    )


def test_lora_with_bias_or_high_rank_becomes_model(train_tiny: Any, pair: list, tmp_path: Path) -> None:
    biased = train_tiny(method={"name": "lora", "rank": 4, "bias": "all"}, base=str(save_model(tmp_path / "q", "qwen2")),
                   out=str(tmp_path / "biased"))  # fmt: skip
    assert "not all of them are plain" in combine([biased, biased], tmp_path / "a", "task_arithmetic").form.template
    made = combine([pair[0]] * 13, tmp_path / "b", "linear")  # rank 52, the widest layer is 48
    assert str(made.form) == "a merged model (the sum of their ranks is above the width of a layer)"
    alone = results.open_model(str(pair[0].folder), "fp32").model.model
    assert gap(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "b")), logits(alone)) <= 1e-5


def test_stacked_runs_merged_on_their_base(pair: list, train_tiny: Any, tmp_path: Path) -> None:
    more = [train_tiny(base=str(pair[0].folder), seed=s, out=str(tmp_path / f"up-{s}")) for s in (5, 6)]
    assert combine(more, tmp_path / "one", "task_arithmetic").gap <= 1e-5
    assert json.loads((tmp_path / "one" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        pair[0].folder
    )
    with pytest.raises(ModelError, match="adapters must share one base model"):
        combine([pair[0], more[0]], tmp_path / "two", "task_arithmetic")


def test_same_base_in_other_folder(pair: list, tiny_llama: Path, train_tiny: Any, tmp_path: Path) -> None:
    copy = save_model(tmp_path / "copy")
    other = train_tiny(base=str(copy), out=str(tmp_path / "other"))
    assert combine([pair[0], other], tmp_path / "one", "linear").gap <= 1e-5


def test_chat_templates_copied_or_difference_reported(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(CHATML.replace("<|im_start|>", "<|im_start|>the "))
    own = train_tiny(train={"steps": 1}, chat_template=str(template))
    plain = train_tiny(train={"steps": 1}, out=str(tmp_path / "plain"))
    made = combine([own, plain], tmp_path / "one", "task_arithmetic")
    assert f"chat templates differ, and that of {own.folder} is used" in str(made.form)
    assert results.open_model(str(tmp_path / "one")).assets.tokenizer.chat_template == template.read_text()


def test_merge_record_written(pair: list, tmp_path: Path) -> None:
    combine(pair, tmp_path / "one", "dare_linear", (), 0.3, 5)
    record = json.loads((tmp_path / "one" / "merge.json").read_text())
    assert (record["name"], record["weights"], record["density"], record["seed"]) == ("dare_linear", [1.0, 1.0], 0.3, 5)
    assert [x["folder"] for x in record["results"]] == [str(run.folder) for run in pair]


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("tise", 2, (), None, None), f"no merge method 'tise'. Did you mean 'ties'. .*: {', '.join(MERGE_METHODS)}."),
        (("task_arithmetic", 1, (), None, None), "a merge method combines two or more results, and 1 was given."),
        (("task_arithmetic", 2, (1.0,), None, None), "weights: 1 weights for 2 results; give one each."),
        (("task_arithmetic", 2, (1.0, float("nan")), None, None), "weights: 1.0, nan are not all finite numbers."),
        (("linear", 2, (1.0, -1.0), None, None), "an average takes weights of at least 0, not all of them 0; a sum"),
        (("task_arithmetic", 2, (), 0.2, None), "density: method task_arithmetic keeps every value; density is for ties"),
        (("average", 2, (), None, None), "no merge method 'average'. Did you mean 'linear'"),
        (("dare", 2, (), None, None), "no merge method 'dare'. Did you mean 'dare_linear'"),
        (("ties", 2, (), None, None, 4), "rank: method ties has no rank to choose; rank is for svd."),
        (("svd", 2, (), None, None, 0), "rank: 0 is no rank; give 1 or more."),
        (("ties", 2, (), 0.0, None), "density: 0 is not a fraction; give more than 0, at most 1"),
        (("ties", 2, (), None, 3), "seed: method ties is not random; seed is for dare_linear, dare_ties."),
    ],
)  # fmt: skip
def test_wrong_arguments(asked: tuple, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        MergeMethod.make(*asked)


def test_wrong_output_folder(
    pair: list, tiny_llama: Path, train_tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused before any weight is loaded."""
    gpt2 = train_tiny(base=str(save_model(tmp_path / "g", "gpt2")), out=str(tmp_path / "other"))

    def never(*args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(merging, "load_stacked_base", never)
    with pytest.raises(
        ModelError,
        match=f"cannot combine .*other .base .*g. with .*run .base {tiny_llama}.: adapters must share one base model",
    ):
        combine([pair[0], gpt2], tmp_path / "one", "task_arithmetic")
    with pytest.raises(ModelError, match="is neither a run nor an adapter in PEFT's format."):
        combine([pair[0], tiny_llama], tmp_path / "one", "task_arithmetic")
    with pytest.raises(ModelError, match="is not empty. Name a folder that does not exist yet."):
        combine(pair, pair[0].folder, "task_arithmetic")
    (pair[1].folder / "best" / "weights.safetensors").unlink()
    with pytest.raises(RunError, match="has no result yet"):
        combine(pair, tmp_path / "one", "task_arithmetic")
