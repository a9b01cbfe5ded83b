"""Several adapters on one base: every row of a batch gets what its adapter alone would give it."""

import random
from collections.abc import Sequence

import pytest
import torch

from support.laws import StopIds, attached, gap, perturb
from support.models import DECODERS, make_model
from support.parts import method_config
from support.rows import batch_of, make_rows
from weitiao.core.batch import pack
from weitiao.core.errors import ModelError
from weitiao.core.generation import generate
from weitiao.core.method import Method
from weitiao.core.registry import find, names
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.adapter_pool import AdapterPool
from weitiao.model.adapters.adapter_weights import LowRankAdapter, detach, shares_base
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.backbone.choose import choose_backbone, make_lm_head
from weitiao.model.generation.choose import make_engine
from weitiao.model.layers.attention import NAME

KINDS = {  # an adapter's name -> its method and settings
    "spam": ("lora", {"rank": 3}),
    "chat": ("lora", {"rank": 5, "use_rslora": True, "alpha": 7}),
    "wide": ("dora", {"rank": 4}),
    "ada": ("adalora", {"rank": 4, "target_rank": 2}),
    "few": ("lora", {"rank": 2, "target_modules": r".*\.1\..*(down_proj|c_proj)"}),
}
SIX = ("spam", "", "chat", "few", "wide", "ada")  # one a row of LENGTHS


def stirred(name: str, family: str) -> TrainableModel:
    """One adapter alone, always the same."""
    method, settings = KINDS[name]
    model = attached(method, family, **settings)
    with torch.no_grad():
        torch.manual_seed(sum(map(ord, name)))
        for weight in model.trainable().values():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


def many(family: str, adapters: Sequence[str] = tuple(KINDS)) -> TrainableModel:
    """All adapters on one base."""
    base = make_model(family)
    base.set_attn_implementation(NAME)
    pool = AdapterPool(base)
    for name in adapters:
        alone = stirred(name, family)
        layers = detach(alone.model, alone.attachment, find(Method, KINDS[name][0]), name)
        pool.add(name, LowRankAdapter.of_layers(layers))
    attachment = pool.attachment()
    backbone, _ = choose_backbone(base, torch.float32)
    architecture, head = architecture_of(base.config), make_lm_head(base)
    return TrainableModel(base, attachment, StopIds(), architecture, backbone, head, _make_engine=make_engine)


def alone(name: str, family: str) -> TrainableModel:
    return stirred(name, family) if name else attached("full", family)


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_packed_rows_use_their_adapter(family: str) -> None:
    """max|difference| / max|logit| <= 5e-5 against the adapter alone on the same batch, for every row: alone, the changes
    of q, k and v are one product and add up in another order (1.9e-5 on the worst of the CPUs tried)."""
    model, rows = many(family), make_rows()
    batch = pack(rows, range(6), SIX)
    got, seen = model.logits(batch), set()
    for name in (*KINDS, ""):
        wanted = alone(name, family).logits(batch_of(rows))
        for start, end, adapter in zip(batch.bounds, batch.bounds[1:], batch.adapters):
            if adapter == name:
                assert gap(got[start:end], wanted[start:end]) <= 5e-5
                seen.add(adapter)
            elif {name, adapter} != {"", "few"}:
                assert gap(got[start:end], wanted[start:end]) > 1e-3, "another adapter would have done"
    assert seen == {*KINDS, ""}


@pytest.mark.parametrize("family", DECODERS)
@torch.no_grad()
def test_batched_generation_equals_single(family: str) -> None:
    """transformers' generate, left-padded with a cache, a batch of all adapters: the very words of each alone."""
    model, rng_key = many(family), random.Random(3)
    prompts = [[rng_key.randrange(3, 320) for _ in range(n)] for n in (4, 9, 2, 7, 5, 6, 3, 8)]
    chosen = [*SIX, "spam", ""]
    together = generate(model, prompts, 8, adapters=chosen)
    wanted = [generate(alone(name, family), [prompt], 8)[0] for prompt, name in zip(prompts, chosen)]
    assert together == wanted
    assert generate(model, prompts, 8, adapters=chosen, batch_size=3) == wanted, "in other company"
    base = [generate(alone("", family), [prompt], 8)[0] for prompt in prompts]
    assert generate(model, prompts, 8) == base and sum(a != b for a, b in zip(base, wanted)) >= 2


@torch.no_grad()
def test_padded_logits_equal_single() -> None:
    """The padded form itself, [B, T, D]: <= 5e-6; the scale is multiplied into B, so products round elsewhere."""
    model, ids = many("llama"), torch.randint(3, 320, (6, 7), generator=torch.Generator().manual_seed(1))
    with model.attachment.adapters_by_row(SIX):
        got = model.model(input_ids=ids, use_cache=False).logits
    for row, name in enumerate(SIX):
        wanted = alone(name, "llama").model(input_ids=ids, use_cache=False).logits[row]
        assert gap(got[row], wanted) <= 5e-6


@torch.no_grad()
def test_one_adapter_and_no_adapter() -> None:
    """A batch for one adapter equals that adapter; one for the base, or disabled adapters, equals the base bit-exactly."""
    model, rows = many("qwen2"), make_rows()
    base = alone("", "qwen2").logits(batch_of(rows))
    assert torch.equal(model.logits(batch_of(rows)), base)
    assert torch.equal(model.logits(pack(rows, range(6), [""] * 6)), base)
    everyone = pack(rows, range(6), ["wide"] * 6)
    assert gap(model.logits(everyone), alone("wide", "qwen2").logits(batch_of(rows))) <= 1e-6
    with model.reference():
        assert torch.equal(model.logits(everyone), base)
    assert not torch.equal(model.logits(everyone), base)


@torch.no_grad()
def test_adapter_isolation() -> None:
    """Row 3 with the same adapter, its neighbours with others: the same to rounding, and the words the same."""
    model, rows = many("llama"), make_rows()
    found = []
    for others in ("", "spam", "chat"):
        batch = pack(rows, range(6), [others] * 3 + ["wide"] + [others] * 2)
        k = batch.row_ids.index(3)
        found.append(model.logits(batch)[batch.bounds[k] : batch.bounds[k + 1]])
    assert gap(found[1], found[0]) <= 1e-6 and gap(found[2], found[0]) <= 1e-6


@pytest.mark.parametrize("method", names(Method))
def test_other_methods_refused(method: str) -> None:
    """Low-rank changes of linear layers go; all else is told so in one sentence."""
    plain = method_config(method)
    model = attached(method, **({k: v for k, v in plain.items() if k != "name"} if isinstance(plain, dict) else {}))
    assert shares_base(find(Method, method)) == (method in ("lora", "dora", "adalora", "bilora")), "known without attaching"
    if shares_base(find(Method, method)):
        perturb(model)
        taken = detach(model.model, model.attachment, find(Method, method), "mine")
        assert taken and set(model.model.state_dict()) == set(make_model().state_dict())
        return
    with pytest.raises(ModelError, match="mine is not only a low-rank change of linear layers .lora, dora."):
        detach(model.model, model.attachment, find(Method, method), "mine")


def test_biases_and_unknown_names_refused() -> None:
    biased = attached("lora", "qwen2", bias="lora_only")
    with pytest.raises(ModelError, match="is not only a low-rank change of linear layers"):
        detach(biased.model, biased.attachment, find(Method, "lora"), "biased")
    with pytest.raises(ModelError, match="no adapter called 'spma'; there are: spam, chat, wide, ada, few"):
        generate(many("llama"), [[5, 6]], 2, adapters=["spma"])
    with pytest.raises(ValueError, match="no adapters to choose from"):
        generate(attached("lora"), [[5, 6]], 2, adapters=["spam"])


def test_row_by_row_backbone_refused() -> None:
    """It would mix rows up: it says so instead."""
    model, rows = many("llama"), make_rows()
    decoder = model.model.get_decoder()

    def row_by_row(batch):
        parts = [batch.input_ids[None, a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
        return torch.cat([decoder(input_ids=ids, use_cache=False).last_hidden_state[0] for ids in parts])

    model.backbone = row_by_row
    with pytest.raises(ModelError, match="do not keep a batch's rows apart .a layer got shape"):
        model.logits(pack(rows, range(6), SIX))


def test_supported_methods_exist() -> None:
    assert {method for method, _ in KINDS.values()} <= set(names(Method))
    assert all(find(Method, method) for method, _ in KINDS.values())
