"""A hand-written block equals transformers' own, forward and backward."""

import pytest
import torch

from support.laws import attached, gap, loss_of, perturb
from support.models import make_model
from support.rows import batch_of, make_rows
from weitiao.core.batch import Batch
from weitiao.core.registry import find_module, names
from weitiao.model.backbone import choose
from weitiao.model.backbone.block_backbone import Block
from weitiao.model.backbone.choose import _packed_forward, all_rows, choose_backbone
from weitiao.model.layers.attention import NAME

FAMILIES = [(block, family) for block in names(Block) for family in find_module(Block, block).FAMILIES]


def test_every_block_found() -> None:
    assert ("llama", "llama") in FAMILIES and len(FAMILIES) >= 4


@pytest.mark.parametrize(("block", "family"), FAMILIES)
def test_block_chosen_with_reason(block: str, family: str) -> None:
    model = make_model(family)
    model.set_attn_implementation(NAME)
    _, choice = choose_backbone(model, torch.float32)
    assert choice.value == block and "on a probe" in str(choice.reason)


def test_wrong_block_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe at loading must catch a block that differs: here one whose last norm is off by a thousandth."""
    llama = find_module(Block, "llama")
    real = llama.finish
    monkeypatch.setattr(llama, "finish", lambda stack, x: real(stack, x) * 1.001)
    model = make_model("llama")
    model.set_attn_implementation(NAME)
    assert choose_backbone(model, torch.float32)[1].value == "transformers"


def test_unpackable_attention_runs_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something gets past our attention (here: rows run as if they were one), packing is given up, and said."""

    def leaking(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return model.get_decoder()(input_ids=batch.input_ids[None], use_cache=False).last_hidden_state[0]

    monkeypatch.setattr(choose, "_packed_forward", leaking)
    monkeypatch.setattr(choose, "names", lambda kind: [])  # no block
    model = make_model("gpt2")
    model.set_attn_implementation(NAME)
    body, choice = choose_backbone(model, torch.float32)
    assert choice.value == "transformers, row by row" and "affect each other" in str(choice.reason)
    batch = batch_of(make_rows())
    for start, end in zip(batch.bounds, batch.bounds[1:]):
        alone = model(input_ids=batch.input_ids[None, start:end], output_hidden_states=True).hidden_states[-1][0]
        assert gap(body(batch)[start:end], alone) <= 1e-5


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("block", "family"), FAMILIES)
def test_same_loss_and_gradients(block: str, family: str, method: str) -> None:
    batch, found = batch_of(make_rows()), []
    for ours in (True, False):
        model = attached(method, family)
        perturb(model)
        if not ours:
            model.backbone = all_rows(lambda b, model=model: _packed_forward(model.model, b))
        loss = loss_of(model, batch)
        loss.backward()
        found.append((loss.detach(), {name: p.grad for name, p in model.trainable().items()}))
    (a, grads), (b, theirs) = found
    assert gap(a, b) <= 1e-6
    for name, g in grads.items():
        assert (g - theirs[name]).norm() <= 2e-5 * theirs[name].norm(), name
