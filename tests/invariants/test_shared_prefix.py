"""A prefix that rows share is computed once, and every result and gradient is that of separate rows."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from support.laws import attached, gap, loss_of, perturb
from support.models import DECODERS, SLIDING_WINDOW
from support.rows import batch_of, make_rows
from weitiao.core.batch import FROZEN_STATES, Batch, with_virtual_tokens
from weitiao.core.method import Method
from weitiao.core.registry import find_module, names
from weitiao.core.shared_prefix import PrefixSharedBatch, no_prefix_sharing
from weitiao.core.trainable_model import TrainableModel, changed_embeddings
from weitiao.model.backbone.block_backbone import Block, BlockBackbone

BLOCKS = [(find_module(Block, name), name) for name in names(Block)]
FAMILIES = [family for block, _ in BLOCKS for family in block.FAMILIES]
CAUSAL = [x for x in FAMILIES if x in (*DECODERS, *SLIDING_WINDOW)]
CASES = [(method, "llama") for method in names(Method)] + [("lora", x) for x in CAUSAL] + [("full", x) for x in CAUSAL]


def rows_alike() -> Batch:
    """Random rows of 1 to 13 tokens with common prefixes, some also in their labels; two are equal."""
    rows: list[dict[str, Any]] = make_rows()
    begin = make_rows(seed=1, lengths=(6,))[0]
    for row, many in zip(rows, (6, 4, 2, 6, 1, 0)):
        for key in ("input_ids", "labels"):
            row[key] = begin[key][:many] + row[key][many:]
    rows[2] = rows[1]
    return batch_of(rows)


def test_every_method_found() -> None:
    assert len(CAUSAL) >= 7 and len(CASES) >= 30


@pytest.mark.parametrize(("method", "family"), CASES)
def test_merged_prefix_equals_separate_rows(method: str, family: str) -> None:
    model, batch = attached(method, family), rows_alike()
    perturb(model)
    virtual_tokens = model.attachment.virtual_tokens()
    assert isinstance(model.backbone, BlockBackbone)
    assert isinstance(
        model.backbone.share_prefixes(with_virtual_tokens(batch, virtual_tokens)[0] if virtual_tokens else batch),
        PrefixSharedBatch,
    ), "it is of some use here"
    merged, grads = _what_it_gives(model, batch)
    with no_prefix_sharing():
        apart, theirs = _what_it_gives(model, batch)
    for a, b in zip(merged, apart):
        assert gap(a, b) <= 1e-5
    assert grads.keys() == theirs.keys() and any(g is not None for g in grads.values())
    for name, g in grads.items():
        if g is None:
            assert theirs[name] is None
        else:
            assert (g - theirs[name]).norm() <= 2e-5 * theirs[name].norm() + 1e-9, name


def _what_it_gives(model: TrainableModel, batch: Batch) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Hidden states of every token, the loss (for which the last layer runs only some tokens), and all gradients."""
    loss = loss_of(model, batch)
    grads = torch.autograd.grad(loss, list(model.trainable().values()), allow_unused=True)
    given = (model.hidden(batch), model.logprobs(batch), loss)
    return tuple(x.detach() for x in given), dict(zip(model.trainable(), grads))


def test_dropout_keeps_rows_separate() -> None:
    model, batch = attached("lora", "llama", dropout=0.1), rows_alike()
    assert isinstance(model.backbone, BlockBackbone) and isinstance(model.backbone.share_prefixes(batch), PrefixSharedBatch)
    model.model.train()
    assert model.backbone.share_prefixes(batch) is batch
    without = attached("lora", "llama")
    without.model.train()
    assert isinstance(without.backbone, BlockBackbone) and isinstance(
        without.backbone.share_prefixes(batch), PrefixSharedBatch
    )


def test_embedding_noise_per_row() -> None:
    model, batch = attached("lora", "llama"), rows_alike()
    noise = torch.randn(batch.tokens, 32)
    with changed_embeddings(model, lambda x, _: x + noise, batch):
        moved = model.hidden(batch).detach()
    spans = [slice(batch.bounds[i], batch.bounds[i + 1]) for i in map(batch.row_ids.index, (1, 2))]
    a, b = (moved[x] for x in spans)
    assert torch.equal(*(batch.input_ids[x] for x in spans))
    assert gap(a, b) > 0.01


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_encoder_rows_not_merged(family: str) -> None:
    model, batch = attached("lora", family), rows_alike()
    assert (
        model.architecture.kind == "encoder"
        and isinstance(model.backbone, BlockBackbone)
        and model.backbone.share_prefixes(batch) is batch
    )


@pytest.mark.parametrize("family", CAUSAL)
def test_merged_prefix_with_activation_cache(family: str) -> None:
    model, batch = attached("freeze", family, num_layers=1), rows_alike()
    backbone: Any = model.backbone
    backbone.num_cached_layers = backbone.num_frozen_layers(tuple(model.trainable().values()))
    assert backbone.num_cached_layers and isinstance(backbone.share_prefixes(batch), PrefixSharedBatch)
    with no_prefix_sharing():
        apart, (wanted, theirs) = backbone.run_frozen(batch), _what_it_gives(model, batch)
    below = backbone.run_frozen(batch)
    assert below.shape == apart.shape and gap(below, apart) <= 1e-5
    given, grads = _what_it_gives(model, replace(batch, more={FROZEN_STATES: below}))
    for a, b in zip(given, wanted):
        assert gap(a, b) <= 1e-5
    for name, g in grads.items():
        assert (g - theirs[name]).norm() <= 2e-5 * theirs[name].norm() + 1e-9, name
