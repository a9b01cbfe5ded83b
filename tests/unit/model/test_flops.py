"""The FLOPs of a step, compared with what torch counts in transformers' forward and backward pass."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from support.models import make_model, save_model
from weitiao.core.batch import IGNORE, pack
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import create, names
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.backbone.choose import choose_backbone, make_lm_head
from weitiao.model.layers.attention import NAME
from weitiao.model.profiling.flops import attention_pairs, model_shapes, profile_flops, step_flops, unsupported_reason

T, D, V, M, L = 12, 32, 320, 48, 3  # of conftest's tiny models; M is the width inside the MLP
SFT: Any = create(Objective, "sft")


def attached(family: str, method: str = "full", **settings: Any) -> TrainableModel:
    model = make_model(family)
    model.set_attn_implementation(NAME)
    backbone, _ = choose_backbone(model, torch.float32)
    architecture = architecture_of(model.config)
    head = make_lm_head(model)
    torch.manual_seed(1)
    attachment = create(Method, method, **settings).attach(model)
    return TrainableModel(model, attachment, SimpleNamespace(stop_ids=(2,)), architecture, backbone, head)


def a_batch(*lengths: int, share: float = 1.0, prefix: int = 0):
    """Rows of which the last tokens are supervised; the first `prefix` are the same in all."""
    rows = []
    for i, n in enumerate(lengths):
        ids, read = [*range(3, 3 + prefix), *range(30 * i + 3 + prefix, 30 * i + 3 + n)], n - int(n * share)
        rows.append({"input_ids": ids, "labels": [IGNORE] * read + ids[read:]})
    return pack(rows)


def ours(model: TrainableModel, *lengths: int, share: float = 1.0, objective: Any = SFT) -> float:
    return step_flops(profile_flops(model), model, objective, a_batch(*lengths, share=share))


def theirs(family: str, change: Any = lambda model: model) -> tuple[float, float]:
    """(FLOPs of layers, of attention) that torch counts, with every token supervised, one row of T."""
    model = change(make_model(family))
    model.set_attn_implementation("eager")
    ids = torch.arange(3, 3 + T)[None]
    with FlopCounterMode(display=False) as counter:
        out = model(input_ids=ids)
        last = out.last_hidden_state if architecture_of(model.config).kind == "encoder" else out.logits
        last.sum().backward()
    by_kind = {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}
    return sum(x for key, x in by_kind.items() if "bmm" not in key), sum(x for key, x in by_kind.items() if "bmm" in key)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt2"])
def test_flops_decoder_full_equals_torch(family: str) -> None:
    """To the FLOP; but of attention's pairs only those that see one another."""
    profile = profile_flops(attached(family))
    layers, attention = theirs(family)
    full = sum(4.0 * x.width * 3 * T * T for x in profile.attentions)
    assert full == attention and len(profile.attentions) == L
    causal = full * (T + 1) / (2 * T)
    assert ours(attached(family), T) == layers + causal


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_flops_encoder_full_equals_torch(family: str) -> None:
    model, objective = attached(family), create(Objective, "classification", classes=("a", "b"), multi_label=False)
    layers, attention = theirs(family)
    assert ours(model, T, objective=objective) == layers + attention


def test_flops_lora_at_most_peft() -> None:
    """PEFT computes nothing that LoRA does not need, but for the full square of attention."""
    from peft import LoraConfig, get_peft_model

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=4, target_modules=every)
    layers, attention = theirs("llama", lambda model: get_peft_model(model, config).base_model.model)
    count = ours(attached("llama", "lora", rank=4), T)
    assert count <= layers + attention
    assert count == layers + attention * (T + 1) / (2 * T)


def test_flops_lora_by_hand() -> None:
    """Two layers of the formula, written out: what is below the first change needs no gradient to its input."""
    model = attached("llama", "lora", rank=4, target_modules=("v_proj",))
    kv, pair = 16, 4.0 * D * T * (T + 1) / 2
    forward = 2.0 * T * (D * D + 2 * D * kv + D * D + 3 * D * M)  # of one layer: q, k and v, o, MLP
    low = 2.0 * T * 4 * (D + kv)
    first = forward + (forward - 2 * T * (D * D + 2 * D * kv)) + low + 2 * T * 4 * (D + kv) + 2 * T * 4 * kv + 3 * pair
    other = 2 * forward + 3 * low + 3 * pair
    assert ours(model, T) == first + (L - 1) * other + 2 * (2.0 * T * V * D)


def test_flops_frozen_layers_forward_only() -> None:
    model = attached("llama", "freeze", num_layers=1)
    profile = profile_flops(model)
    frozen = [x for x in profile.products if ".layers.2." not in x.name]
    assert frozen and all(x.num_products == 1 for x in frozen) and not any(x.has_gradient for x in profile.attentions[:2])
    batch = a_batch(T)
    full, cached = (step_flops(profile, model, SFT, batch, from_layer=n) for n in (0, 2))
    forward = 2.0 * T * (2 * D * D + 2 * D * 16 + 3 * D * M) + 4.0 * D * T * (T + 1) / 2
    assert full - cached == 2 * forward


def test_flops_lm_head_on_labeled_tokens_only() -> None:
    model = attached("llama")
    quarter, full = ours(model, T, share=0.25), ours(model, T)
    tail = 3 * (2.0 * T * (2 * D * D + 3 * D * M) + 4.0 * D * T * (T + 1) / 2)
    assert full - quarter == pytest.approx(0.75 * (tail + 3 * 2.0 * T * V * D))


def test_flops_sum_over_rows() -> None:
    model = attached("llama")
    assert ours(model, T, T) == 2 * ours(model, T)
    more = ours(model, 2 * T) - 2 * ours(model, T)
    assert more == L * 12.0 * D * (attention_pairs(2 * T, True) - 2 * attention_pairs(T, True))


def test_flops_shared_prefix_once() -> None:
    model, k = attached("llama"), 4
    separate, prefix = (step_flops(profile_flops(model), model, SFT, a_batch(T, T, share=0.5, prefix=x)) for x in (0, k))
    layers = 3 * 2.0 * k * ((L - 1) * (2 * D * D + 3 * D * M) + L * 2 * D * 16)  # of the last one, keys and values
    # the pairs of the last one, times the supervised share
    last = attention_pairs(T, True) - (2 * attention_pairs(T, True) - attention_pairs(k, True)) * T / (2 * T - k)
    assert separate - prefix == pytest.approx(layers + 12.0 * D * ((L - 1) * attention_pairs(k, True) + last))


def test_flops_shared_prefix_above_frozen_layers() -> None:
    model, k = attached("llama", "freeze", num_layers=1), 4
    profile, first_trained = profile_flops(model), L - 1
    prefix, separate = (
        step_flops(profile, model, SFT, a_batch(T, T, share=0.5, prefix=x), from_layer=first_trained) for x in (k, 0)
    )
    keys_and_values = 3 * 2.0 * k * 2 * D * 16
    last = attention_pairs(T, True) - (2 * attention_pairs(T, True) - attention_pairs(k, True)) * T / (2 * T - k)
    assert separate - prefix == pytest.approx(keys_and_values + 12.0 * D * last)


def test_flops_virtual_tokens() -> None:
    model = attached("llama", "prompt_tuning", num_virtual_tokens=5)
    profile = profile_flops(model)
    assert all(x.to_input and not x.to_weight for x in profile.products), "the prompt lies below everything"
    layers = 2 * 2.0 * (T + 5) * (2 * D * D + 2 * D * 16 + 3 * D * M)
    saved = (1 - T / (T + 5)) * (2 * 2.0 * (T + 5) * (2 * D * D + 3 * D * M) + 12.0 * D * attention_pairs(T + 5, True))
    lm_head = 2 * 2.0 * T * V * D
    expected = L * (layers + 12.0 * D * attention_pairs(T + 5, True)) - saved + lm_head
    assert step_flops(profile, model, SFT, a_batch(T)) == pytest.approx(expected)


@pytest.mark.parametrize("method", [x for x in names(Method) if x not in ("f_learning", "peft", "bitfit")])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_flops_of_every_method(method: str, family: str) -> None:
    """More than a forward pass, at most full fine-tuning plus the method's own layers; counting changes nothing."""
    objective: Any = (
        SFT if family == "llama" else create(Objective, "classification", classes=("a", "b"), multi_label=False)
    )
    model, full = attached(family, method), attached(family)
    before = {name: x.clone() for name, x in model.model.state_dict().items()}
    drawn, hooks = torch.get_rng_state(), sum(len(x._forward_pre_hooks) for x in model.model.modules())
    count = ours(model, T, objective=objective)
    assert torch.equal(drawn, torch.get_rng_state()) and not model.training
    assert sum(len(x._forward_pre_hooks) for x in model.model.modules()) == hooks
    assert all(torch.equal(x, before[name]) for name, x in model.model.state_dict().items())
    assert all(weight.grad is None for weight in model.model.parameters())
    others = [x for x in profile_flops(model).products if not x.own or x.rows is not None]
    extra = sum(2.0 * 3 * (x.rows or T) * x.shape[0] * x.shape[1] for x in others)
    virtual_tokens = len(model.attachment.virtual_tokens())
    assert ours(full, T, objective=objective) / 3 < count <= ours(full, T + virtual_tokens, objective=objective) + extra


def test_flops_frozen_layers_in_every_family(tmp_path: Any) -> None:
    for family in ("llama", "qwen2", "gemma", "gpt2", "bert", "distilbert"):
        profile = profile_flops(attached(family, "lora"))
        own = [x for x in profile.products if x.own]
        assert len(profile.attentions) == L and own and not own[0].to_input and own[-1].to_input, family
        assert sum(x.tail for x in profile.attentions) == 1
        named = {x.name for x in own}
        linear = [n for n, x in make_model(family).named_modules() if isinstance(x, nn.Linear) and "lm_head" not in n]
        assert named >= set(linear), family


def reported(family: str) -> Any:
    model: Any = make_model(family)
    return SimpleNamespace(model=model, architecture=architecture_of(model.config))


def test_flops_uncounted_reason() -> None:
    model: Any = reported("t5")
    assert unsupported_reason(model, create(Objective, "seq2seq", max_new_tokens=8)) == Message(
        "FLOPs are not counted for encoder-decoder models"
    )
    bert: Any = reported("bert")
    assert "repack segments" in str(unsupported_reason(bert, create(Objective, "embedding")))


def test_flops_shapes_from_config(tmp_path: Any) -> None:
    folder = save_model(tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    shapes = model_shapes(folder)
    assert shapes.layers == {(D, D): 2 * L, (16, D): 2 * L, (M, D): 2 * L, (D, M): L}
    assert (shapes.heads, shapes.kv_heads, shapes.head_dim, shapes.causal) == (4, 2, 8, True)
    assert not model_shapes(save_model(tmp_path / "bert", "bert")).causal
