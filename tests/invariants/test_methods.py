"""Invariants of every method. A new file in model/methods/ is tested without a new line here."""

import pytest
import torch

from support.laws import attached, base_model, gap, loss_of, method_class, outputs, perturb, reference_outputs
from support.models import DECODERS, FAMILIES, make_model
from support.parts import VARIANTS
from support.rows import batch_of, make_rows
from weitiao.core.generation import generate
from weitiao.core.method import Method
from weitiao.core.registry import names
from weitiao.pipeline.trained import method_of
from weitiao.train.checkpoints.state import load_weights

METHODS = (*names(Method), *VARIANTS)
CASES = [(method, family) for method in METHODS for family in FAMILIES]
WRITING = [(method, family) for method, family in CASES if family in DECODERS]


def test_every_method_found() -> None:
    assert {"full", "lora"} <= set(METHODS)


@pytest.mark.parametrize(("method", "family"), CASES)
def test_alignment_law(method: str, family: str) -> None:
    """One hidden state a token, one row of logits a token, whatever was put inside."""
    model, batch = attached(method, family), batch_of(make_rows())
    perturb(model)
    assert model.hidden(batch).shape == (batch.tokens, 32)
    assert outputs(model, batch).shape == (batch.tokens, 320 if family in DECODERS else 32)


@pytest.mark.parametrize(("method", "family"), CASES)
def test_starts_at_base(method: str, family: str) -> None:
    batch = batch_of(make_rows())
    tuned, base = attached(method, family), attached("full", base=base_model(method, family))
    same = gap(outputs(tuned, batch), outputs(base, batch)) <= 1e-6
    assert same or not method_class(method).starts_at_base


@pytest.mark.parametrize(("method", "family"), CASES)
def test_packing_equals_single_rows(method: str, family: str) -> None:
    """max|difference| / max|logit| <= 1e-5 in fp32; and transformers' own padded forward says the same."""
    model, rows = attached(method, family), make_rows()
    perturb(model)
    batch = batch_of(rows)
    packed = outputs(model, batch)
    for k, (start, end) in enumerate(zip(batch.bounds, batch.bounds[1:])):
        row = rows[batch.row_ids[k]]
        assert gap(packed[start:end], outputs(model, batch_of([row]))) <= 1e-5
        plain = reference_outputs(model, row["input_ids"])
        assert gap(packed[start:end], plain) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_packing_isolation(method: str) -> None:
    """Changing row A's tokens (not its length) leaves row B's loss and gradient bit-equal."""

    def loss_and_gradient(rows: list[dict]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = attached(method)
        perturb(model)
        batch = batch_of(rows)
        b = batch.row_ids.index(3)
        counts = [int((batch.labels[s:e] != -100).sum()) for s, e in zip(batch.bounds, batch.bounds[1:])]
        loss = -model.logprobs(batch).split(counts)[b].sum()
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.trainable().items() if p.grad is not None}

    rows = make_rows()
    other = [dict(row) for row in rows]
    other[0] = {**rows[0], "input_ids": [(i * 7) % 300 + 3 for i in rows[0]["input_ids"]]}
    (loss, grads), (loss2, grads2) = loss_and_gradient(rows), loss_and_gradient(other)
    assert torch.equal(loss, loss2)
    assert grads.keys() == grads2.keys() and grads
    assert all(torch.equal(grads[name], grads2[name]) for name in grads)


@pytest.mark.parametrize(("method", "family"), CASES)
def test_only_attachment_trainable(method: str, family: str) -> None:
    """Within three steps every trainable tensor gets a gradient and moves; nothing else changes a bit."""
    model, batch = attached(method, family), batch_of(make_rows())
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    mine = model.trainable()
    optimizer = torch.optim.SGD(mine.values(), lr=0.1)
    touched: set[str] = set()
    for _ in range(3):
        loss_of(model, batch).backward()
        touched |= {name for name, p in mine.items() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        optimizer.zero_grad()
    assert touched == set(mine)
    for name, p in model.model.named_parameters():
        no_pull = name.endswith("key.bias")  # softmax does not feel it: its gradient is rounding
        assert torch.equal(p, before[name]) == (name not in mine) or (name in mine and no_pull), name


@pytest.mark.parametrize("method", METHODS)
def test_disabled_method_equals_base(method: str) -> None:
    model, batch = attached(method), batch_of(make_rows())
    perturb(model)
    if model.attachment.set_enabled is None:
        pytest.skip(f"{method} declares that it cannot be switched off")
    tuned, base = outputs(model, batch), outputs(attached("full", base=base_model(method)), batch)
    with model.reference():  # without gradients, weights of few bits have kernels of their own, which sum in another order
        assert gap(outputs(model, batch), base) <= (1e-6 if method.startswith("qlora") else 0.0)
    assert torch.equal(outputs(model, batch), tuned)
    assert gap(tuned, base) > 1e-3


@pytest.mark.parametrize(("method", "family"), CASES)
def test_save_load_same_logits(method: str, family: str) -> None:
    """Trainable tensors and buffers, loaded into a new model, give bit-exactly the same logits."""
    model, batch = attached(method, family), batch_of(make_rows())
    perturb(model)
    kept = {name: p.detach().clone() for name, p in model.trainable().items()}
    kept |= {f"buffer.{name}": b.clone() for name, b in model.buffers().items()}
    fresh = attached(method, family)
    load_weights(fresh, kept)
    assert torch.equal(outputs(fresh, batch), outputs(model, batch))


@pytest.mark.parametrize(("method", "family"), CASES)
def test_merge_same_logits(method: str, family: str) -> None:
    """<= 1e-4, and what is left is a plain model."""
    model, batch = attached(method, family), batch_of(make_rows())
    perturb(model)
    if model.attachment.merge is None:
        pytest.skip(f"{method} declares that it cannot be merged")
    tuned = outputs(model, batch).detach()
    model.attachment.merge()
    assert gap(outputs(model, batch), tuned) <= 1e-4
    assert set(model.model.state_dict()) == set(make_model(family).state_dict())


@pytest.mark.parametrize(("method", "family"), WRITING)
def test_cached_generation_equals_uncached(method: str, family: str) -> None:
    """generate() with its cache, left-padded in a batch, writes what one forward a token would."""
    model = attached(method, family)
    perturb(model)
    prompts = [[5, 9, 30, 7], [11, 12, 13, 14, 15, 16, 17]]
    written = generate(model, prompts, max_new_tokens=6)
    for prompt, answer in zip(prompts, written):
        ids = list(prompt)
        for _ in range(6):
            row = {"input_ids": ids, "labels": [-100] * len(ids)}
            token = int(outputs(model, batch_of([row]))[-1].argmax())
            if token == 2:
                break
            ids.append(token)
        assert answer == ids[len(prompt) :]


@pytest.mark.parametrize(("method", "family"), CASES)
def test_same_logits_in_peft(method: str, family: str, tmp_path) -> None:
    """Our adapter in PEFT, and PEFT's in ours: <= 1e-5."""
    from peft import PeftModel

    from weitiao.model.adapters.peft_format import load_adapter, read_adapter_config, save_adapter

    model, batch = attached(method, family), batch_of([make_rows()[3]])
    perturb(model)
    if not save_adapter(model.attachment, tmp_path / "adapter", "base"):
        pytest.skip(f"PEFT has no format for {method}")
    peft = PeftModel.from_pretrained(base_model(method, family), tmp_path / "adapter")
    out = peft(input_ids=batch.input_ids[None])
    theirs = (out.logits if family in DECODERS else out.last_hidden_state)[0, -batch.tokens :].float()  # no soft prompts
    assert gap(outputs(model, batch), theirs) <= 1e-5

    peft.save_pretrained(tmp_path / "back")
    config = read_adapter_config(tmp_path / "back")
    again = method_of(config)
    fresh = attached(again.name, base=base_model(method, family), **again.model_dump())
    load_adapter(fresh.attachment, tmp_path / "back")
    assert gap(outputs(fresh, batch), theirs) <= 1e-5
