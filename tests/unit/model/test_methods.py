"""What single methods promise beyond the laws: budgets, ranks, rates, places, and words for what cannot be."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.laws import attached, gap, perturb
from support.models import make_model, make_tokenizer
from support.rows import batch_of, make_rows
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.registry import create
from weitiao.core.trainable_model import reference_logits
from weitiao.model.adapters.peft_format import load_adapter, read_adapter_config, save_adapter
from weitiao.pipeline.trained import method_of


def test_adalora_reaches_budget(train_tiny: Any) -> None:
    """21 layers from rank 6 to 2 on average; the best triplets are left, and not the same number everywhere."""
    method = {"name": "adalora", "rank": 6, "target_rank": 2, "delta_t": 5}
    run = train_tiny(method=method, train={"steps": 40, "learning_rate": 5e-2, "save_every": 5, "keep_checkpoints": 9})
    states = sorted((run.folder / "checkpoints").glob("step-*"))
    left = []
    for path in states:
        weights = load_file(path / "weights.safetensors")
        left.append([int((x != 0).sum()) for name, x in weights.items() if name.endswith(".lora_E")])
    assert len(left[-1]) == 21 and sum(left[-1]) == 2 * 21 and len(set(left[-1])) > 1
    sums = [sum(x) for x in left if sum(x)]
    assert sums == sorted(sums, reverse=True) and sums[0] > sums[-1]


def test_lora_plus_learning_rate_of_b() -> None:
    model = attached("lora", loraplus_lr_ratio=16.0)
    groups = model.attachment.groups(0)
    rates = {name: group.get("rate", 1.0) for group in groups for name in group["names"]}
    assert rates.keys() == model.trainable().keys()
    assert {rate for name, rate in rates.items() if name.endswith("lora_B")} == {16.0}
    assert {rate for name, rate in rates.items() if name.endswith("lora_A")} == {1.0}


def test_rank_pattern_roundtrip_peft(tmp_path: Any) -> None:
    from peft import PeftModel

    model, batch = attached("lora", rank_pattern={r".*\.q_proj": 4, r".*layers\.0\.mlp.*": 8}), batch_of([make_rows()[3]])
    perturb(model)
    ranks = {name: p.shape[0] for name, p in model.trainable().items() if name.endswith("lora_A")}
    assert set(ranks.values()) == {4, 8, 16} and all(rank == 4 for name, rank in ranks.items() if "q_proj" in name)
    assert save_adapter(model.attachment, tmp_path / "adapter", "base")
    peft = PeftModel.from_pretrained(make_model(), tmp_path / "adapter")
    theirs = peft(input_ids=batch.input_ids[None]).logits[0]
    assert gap(model.logits(batch), theirs) <= 1e-5
    again = method_of(read_adapter_config(tmp_path / "adapter"))
    fresh = attached("lora", **again.model_dump())
    load_adapter(fresh.attachment, tmp_path / "adapter")
    assert gap(fresh.logits(batch), theirs) <= 1e-5


def test_orthogonal_init() -> None:
    a = next(p for name, p in attached("lora", init="orthogonal", rank=8).trainable().items() if name.endswith("lora_A"))
    torch.testing.assert_close(a @ a.T, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", ["LoKr", "HRA", "FourierFT", "OFTConfig"])
def test_peft_method(config: str) -> None:
    """Other methods of PEFT: they begin at the base, all that is trained gets a gradient, and off is the base again."""
    settings = {"FourierFT": {"n_frequency": 20}, "OFTConfig": {"oft_block_size": 8, "r": 0}}.get(config, {"r": 4})
    model, batch = attached("peft", config=config, settings=settings), batch_of(make_rows())
    base = attached("full").logits(batch)
    assert config == "FourierFT" or gap(model.logits(batch), base) <= 1e-5
    perturb(model)
    tuned = model.logits(batch)
    assert gap(tuned, base) > 1e-3
    tuned.square().sum().backward()
    assert all(p.grad is not None for p in model.trainable().values())
    with model.reference():
        assert gap(model.logits(batch), base) <= 1e-6


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_adapter_variants(variant: str, family: str) -> None:
    """Starts at the base; packed is each row alone; off is the base."""
    batch, base = batch_of(make_rows()), attached("full", family)
    model = attached("adapter", family, variant=variant)
    assert gap(model.logits(batch), base.logits(batch)) <= 1e-6
    perturb(model)
    packed = model.logits(batch)
    assert gap(packed, base.logits(batch)) > 1e-3
    for k, (begin, end) in enumerate(zip(batch.bounds, batch.bounds[1:])):
        row = make_rows()[batch.row_ids[k]]
        assert gap(packed[begin:end], reference_logits(model, row["input_ids"])) <= 1e-5
    num_adapters = sum(name.endswith("down.weight") for name in model.trainable())
    assert num_adapters == (6 if variant == "houlsby" else 3)


def test_freeze_trains_top_layers() -> None:
    model = attached("freeze", num_layers=1)
    assert {name.split(".")[2] for name in model.trainable() if ".layers." in name} == {"2"}
    assert not any("embed" in name for name in model.trainable())
    assert attached("freeze", pattern=r".*mlp.*").trainable().keys() == {
        name for name, _ in make_model().named_parameters() if "mlp" in name
    }


def test_layerwise_learning_rate_decay() -> None:
    model = attached("freeze", num_layers=3, layer_lr_decay=0.5, embedding=True)
    rates = {name: g["rate"] for g in model.attachment.groups(0) for name in g["names"]}
    assert rates["model.norm.weight"] == 1.0 and rates["model.embed_tokens.weight"] == 0.125
    assert [rates[f"model.layers.{i}.mlp.up_proj.weight"] for i in (2, 1, 0)] == [1.0, 0.5, 0.25]


def test_gradual_unfreezing(train_tiny: Any) -> None:
    """One more layer every two steps: a layer that is still frozen does not move."""
    method = {"name": "freeze", "num_layers": 3, "unfreeze_every": 2}
    run = train_tiny(
        method=method, train={"steps": 5, "save_every": 1, "keep_checkpoints": 9, "learning_rate": 1e-2, "warmup_ratio": 0}
    )
    states = [load_file(x / "weights.safetensors") for x in sorted((run.folder / "checkpoints").glob("step-*"))]
    for layer, since in ((2, 0), (1, 2), (0, 4)):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        moved = [not torch.equal(a[name], b[name]) for a, b in zip(states, states[1:])]
        assert moved == [step >= since for step in range(5)], name


def test_prompt_init_from_text() -> None:
    method = create(Method, "prompt_tuning", init="the fox", num_virtual_tokens=5)
    fitted = method.fit(lambda text: make_tokenizer()(text).input_ids)
    ids = make_tokenizer()("the fox").input_ids
    assert fitted.init_ids == tuple((ids * 5)[:5])
    model = attached("prompt_tuning", **fitted.model_dump())
    prompt = model.trainable()["soft_prompt"]
    assert torch.equal(prompt.data, model.model.get_input_embeddings().weight[list(fitted.init_ids)])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("freeze", {"num_layers": 9}, "the model has 3 layers; it is not possible to train 9"),
        ("freeze", {"pattern": "nothing"}, "no weight name matches 'nothing'"),
        ("bitfit", {}, "this model has none.*add_missing: true"),
        ("dora", {"target_modules": "qproj"}, "no linear layer matches 'qproj'; names are: "),
        ("peft", {"config": "LoHaa"}, "PEFT has no LoHaaConfig. Did you mean 'LoHa'"),
        ("peft", {"config": "PromptTuning"}, "trains prompts; use prompt_tuning"),
        ("peft", {"config": "LoHa", "settings": {"rank": 4}}, "unexpected keyword argument 'rank'"),
        ("peft", {"config": "LoHa", "settings": {"target_modules": ["nothing"]}}, "PEFT's LoHa does not support"),
        ("lora", {"rank_pattern": {"nothing": 4}}, "'nothing' matches none of the changed layers"),
        ("dora", {"rank": 49}, "method.rank: 49 is larger than a layer"),
        ("ln_tuning", {"target_modules": "nom"}, "no norm matches 'nom'; the norms are named: "),
        ("vera", {"target_modules": ["x"]}, "no linear layer matches 'x'"),
    ],
)
def test_invalid_method_settings_refused(method: str, settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        create(Method, method, **settings).attach(make_model())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rank": 4, "target_rank": 8}, "target_rank"), ({"tinit_ratio": 0.5, "tfinal_ratio": 0.5}, "tinit_ratio")],
)
def test_invalid_adalora_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(Method, "adalora", **settings)
