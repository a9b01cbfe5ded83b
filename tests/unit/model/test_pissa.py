"""`init: pissa`: what it learns is PEFT's PiSSA, and its result fits the plain base on any machine."""

import copy
from typing import Any

import peft
import pytest
import torch

from support.laws import attached, gap, perturb
from support.models import make_model
from support.rows import batch_of, make_rows
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.method import Method
from weitiao.core.registry import create
from weitiao.model.adapters.peft_format import load_adapter, read_adapter_config, save_adapter
from weitiao.model.methods.lora import PiSSALinear
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.trained import method_of

PISSA = {"init": "pissa", "rank": 4, "alpha": 12.0}


def layers(model: Any) -> dict[str, PiSSALinear]:
    return {name: x for name, x in model.model.named_modules() if isinstance(x, PiSSALinear)}


@pytest.mark.parametrize(("niter", "most"), [("exact", 1e-5), (16, 1e-2)])
def test_pissa_init_is_top_singular_triplets(niter: Any, most: float) -> None:
    """What they leave of W is as small as rank 4 can leave it (Eckart-Young)."""
    for name, layer in layers(attached("lora", **PISSA, niter=niter)).items():
        weight = layer.weight()
        left = weight - layer.scale * layer.lora_B @ layer.lora_A
        least = torch.linalg.svdvals(weight)[4:].norm()
        assert float(left.norm() / least) == pytest.approx(1, abs=most), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pissa_equals_peft(family: str) -> None:
    """The same A and B, three steps of Adam: the same logits, though our base weights are never touched."""
    targets = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn"]}[family]
    ours, batch = attached("lora", family, target_modules=targets, **PISSA), batch_of([make_rows()[3]])
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=targets, init_lora_weights="pissa")
    theirs = peft.get_peft_model(make_model(family), config)
    tensors = dict(theirs.named_parameters())
    for name, layer in layers(ours).items():
        for which in ("A", "B"):
            tensor = tensors[f"base_model.model.{name}.lora_{which}.default.weight"].detach()
            getattr(layer, f"lora_{which}").data.copy_(tensor)
            getattr(layer, f"initial_{which}").copy_(tensor)
    logits = []
    for forward, weights in (
        (lambda: ours.logits(batch), list(ours.trainable().values())),
        (lambda: theirs(input_ids=batch.input_ids[None]).logits[0], [p for p in theirs.parameters() if p.requires_grad]),
    ):
        optimizer = torch.optim.Adam(weights, lr=1e-2)
        for _ in range(3):
            torch.nn.functional.cross_entropy(forward(), batch.labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        logits.append(forward().detach())
    assert gap(logits[0], logits[1]) <= 1e-4
    assert gap(logits[0], attached("full", family).logits(batch)) > 1e-2


def test_pissa_bf16_small_change_kept() -> None:
    """s B A - s B0 A0 of large factors, each rounded to bf16, is noise; the product of small differences is not."""
    layer, x = next(iter(layers(attached("lora", **PISSA)).values())), torch.randn(64, 32)
    with torch.no_grad():
        for weight in (layer.lora_A, layer.lora_B):
            weight.add_(torch.randn_like(weight) * 1e-3)
        a, b = layer.factors()
        exact = x @ (b @ a).T
        small = (x.bfloat16() @ a.bfloat16().T) @ b.bfloat16().T
        naive = [(x.bfloat16() @ q.bfloat16().T) @ p.bfloat16().T for p, q in _pairs(layer)]
    error = lambda product: float((product.float() - exact).norm() / exact.norm())  # noqa: E731
    assert error(small) < 0.02 < 0.2 < error(naive[0] - naive[1])


def _pairs(layer: PiSSALinear) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    return (layer.lora_B, layer.lora_A), (layer.initial_B, layer.initial_A)


def test_pissa_result_independent_of_svd(train_tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Singular vectors are defined up to their sign, and libraries choose differently."""
    run = train_tiny(method={"name": "lora", **PISSA})
    ids = torch.tensor([[5, 9, 40, 200, 17]])
    with torch.no_grad():
        reference = open_model(str(run.folder)).model.model(input_ids=ids).logits
        real = torch.linalg.svd

        def svd(*args: Any, **named: Any) -> Any:
            u, s, v = real(*args, **named)
            return -u.roll(1, 1), s.roll(1), -v.roll(1, 0)

        monkeypatch.setattr(torch.linalg, "svd", svd)
        assert torch.equal(open_model(str(run.folder)).model.model(input_ids=ids).logits, reference)


@pytest.mark.parametrize(
    "settings", [{"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"use_rslora": True, "rank_pattern": {"o_proj": 3}}]
)
def test_pissa_exports_lora_of_double_rank(settings: dict, tmp_path: Any) -> None:
    model, batch = attached("lora", **PISSA, **settings), batch_of([make_rows()[3]])
    perturb(model)
    assert save_adapter(model.attachment, tmp_path, "base")
    config = read_adapter_config(tmp_path)
    assert config["r"] == 8 and config["init_lora_weights"] is True
    theirs = peft.PeftModel.from_pretrained(make_model(), tmp_path)
    expected = theirs(input_ids=batch.input_ids[None]).logits[0]
    assert gap(model.logits(batch), expected) <= 1e-5
    again = attached("lora", **method_of(config).model_dump())
    load_adapter(again.attachment, tmp_path)
    assert gap(again.logits(batch), expected) <= 1e-5


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
def test_pissa_adapter_for_changed_base_refused(init: str, tmp_path: Any) -> None:
    """Read as a plain LoRA it would answer nonsense."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=init)
    peft.get_peft_model(make_model(), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"needs the base weights that its init_lora_weights '{init}' changed"):
        method_of(read_adapter_config(tmp_path))


def test_pissa_rank_too_high() -> None:
    with pytest.raises(RecipeError, match=r"rank 20 needs more singular triplets than the 16 of .*k_proj"):
        create(Method, "lora", init="pissa", rank=20).attach(make_model())
    create(Method, "lora", init="pissa", rank=20, rank_pattern={"[kv]_proj": 16}).attach(make_model())


def test_pissa_base_weights_untouched() -> None:
    before = copy.deepcopy(make_model().state_dict())
    model = attached("lora", **PISSA)
    for name, layer in layers(model).items():
        assert torch.equal(layer.weight(), before[f"{name}.weight"])
