"""Log-probabilities in chunks: the same numbers and gradients as log_softmax over everything, without [T, V]."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weitiao.core.batch import Batch, pack
from weitiao.core.lm_head import CHUNK, LMHead
from weitiao.model.layers import attention_cpu

D, V = 24, 300


class Largest(TorchDispatchMode):
    """Records the largest tensor that any operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, Tensor) and made.numel() > torch.Size(self.shape or (0,)).numel():
                self.shape = tuple(made.shape)
        return out


def make(n: int, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None, Tensor, dict]:
    """(hidden, weight, bias, targets, the head's settings)"""
    random = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, D, generator=random).to(dtype).requires_grad_(True)
    weight = torch.randn(V, D, generator=random).to(dtype).requires_grad_(True)
    bias = None
    if "bias" in kind:
        bias = torch.randn(V, generator=random).to(dtype).requires_grad_(kind == "trained bias")
    targets = torch.randint(0, V, (n,), generator=random)
    settings: dict[str, Any] = {"scale": 0.37} if kind == "scale" or "bias" in kind else {}
    return hidden, weight, bias, targets, {**settings, **({"softcap": 3.0} if kind == "softcap" else {})}


def plainly(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float = 1, softcap: float = 0):
    z = hidden @ weight.T
    z = (z if bias is None else z + bias) * scale
    z = softcap * torch.tanh(z / softcap) if softcap else z
    return z.log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
@pytest.mark.parametrize("kind", ["plain", "scale", "fixed bias", "trained bias", "softcap"])
def test_lm_head_equals_log_softmax(kind: str, n: int) -> None:
    hidden, weight, bias, targets, settings = make(n, kind, torch.float32)
    got = LMHead(lambda: weight, lambda: bias, **settings).logprobs(hidden, targets)
    exact = [x.detach().double().requires_grad_(x.requires_grad) if x is not None else None for x in (hidden, weight, bias)]
    wanted = plainly(*exact, targets, **settings)
    assert got.dtype == torch.float32 and got.shape == (n,)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    if n == 0:
        return
    incoming = torch.linspace(-1, 2, n)
    (got * incoming).sum().backward()
    (wanted * incoming.double()).sum().backward()
    for ours, true in zip((hidden, weight, bias), exact):
        if ours is not None and ours.requires_grad:
            gap = (ours.grad.double() - true.grad).norm() / true.grad.norm()
            assert gap <= 1e-5


def test_no_labels_no_gradient() -> None:
    hidden, weight, _, targets, _ = make(0, "plain", torch.float32)
    LMHead(lambda: weight, lambda: None).logprobs(hidden, targets).sum().backward()
    assert weight.grad is not None and not weight.grad.any()
    assert hidden.grad is not None and hidden.grad.shape == (0, D)


@pytest.mark.parametrize("kind", ["trained bias", "softcap"])
def test_no_labels_with_custom_head(kind: str) -> None:
    hidden, weight, bias, targets, settings = make(0, kind, torch.float32)
    out = LMHead(lambda: weight, lambda: bias, **settings).logprobs(hidden, targets)
    out.sum().backward()
    assert out.shape == (0,) and hidden.grad is not None


def test_frozen_head_passes_gradient_to_hidden() -> None:
    hidden, weight, _, targets, _ = make(9, "plain", torch.float32)
    weight.requires_grad_(False)
    LMHead(lambda: weight, lambda: None).logprobs(hidden, targets).sum().backward()
    wanted = torch.autograd.grad(plainly(hidden, weight, None, targets).sum(), hidden)[0]
    torch.testing.assert_close(hidden.grad, wanted, rtol=1e-5, atol=1e-5)
    assert weight.grad is None


def test_hidden_without_grad_gets_none() -> None:
    hidden, weight, _, targets, _ = make(9, "plain", torch.float32)
    still = hidden.detach()
    LMHead(lambda: weight, lambda: None).logprobs(still, targets).sum().backward()
    wanted = torch.autograd.grad(plainly(still, weight, None, targets).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, wanted, rtol=1e-5, atol=1e-5)


def test_half_precision_scored_in_fp32() -> None:
    hidden, weight, _, targets, _ = make(40, "plain", torch.float32)
    low = hidden.detach().to(torch.bfloat16).requires_grad_(True)
    got = LMHead(lambda: weight, lambda: None).logprobs(low, targets)
    got.sum().backward()
    assert got.dtype == torch.float32 and low.grad is not None and low.grad.dtype == torch.bfloat16
    wanted = plainly(hidden, weight, None, targets)
    assert float(((got - wanted).abs().max() / wanted.abs().max()).detach()) < 2e-2


@pytest.mark.parametrize("kind", ["plain", "scale", "fixed bias", "trained bias", "softcap"])
def test_no_tensor_larger_than_chunk(kind: str) -> None:
    hidden, weight, bias, targets, settings = make(4 * CHUNK, kind, torch.float32)
    with Largest() as seen:
        LMHead(lambda: weight, lambda: bias, **settings).logprobs(hidden, targets).sum().backward()
    assert torch.Size(seen.shape).numel() == CHUNK * V, f"a tensor {seen.shape} was made"


def test_bf16_copy_follows_frozen_weight() -> None:
    one, other = torch.randn(V, D), torch.randn(V, D)
    at = [one]
    head = LMHead(lambda: at[0], lambda: None)

    def rounded() -> Tensor:
        return head.rounded(head.weight(), torch.bfloat16)

    first = rounded()
    assert torch.equal(first, one.bfloat16()) and rounded() is first
    one[3] += 1  # merged into
    assert torch.equal(rounded(), one.bfloat16())
    at[0] = other  # swapped
    assert torch.equal(rounded(), other.bfloat16())
    one.data, at[0] = torch.randn(V, D), one
    assert torch.equal(rounded(), one.bfloat16())
    one.requires_grad_()
    assert rounded() is not rounded()  # a trained one moves with every step


def whole(length: int, supervised: int) -> Batch:
    ids = torch.randint(0, 320, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    return pack([{"input_ids": ids, "labels": [-100] * (length - supervised) + ids[length - supervised :]}])


def test_only_labeled_positions_scored(open_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same long row with few tokens that carry loss never makes a tensor as large as [T, V]."""
    monkeypatch.setattr(attention_cpu, "MAX_SCORES", 1)  # scores of few tokens at once: V is small here
    model, length, vocabulary = open_model(), 250, 320
    with Largest() as seen:
        (-model.logprobs(whole(length, 20)).sum()).backward()
    assert torch.Size(seen.shape).numel() < length * vocabulary // 2, f"a tensor {seen.shape} was made"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma"])
def test_logprobs_equal_log_softmax_of_logits(open_model: Any, tiny_models: dict, family: str) -> None:
    model, batch = open_model(base=tiny_models[family]), whole(60, 30)
    with torch.no_grad():
        logits = model.model(input_ids=batch.input_ids[None], use_cache=False).logits[0]
        wanted = logits.log_softmax(-1)[torch.arange(30, 60), batch.labels[30:]]
        got = model.logprobs(batch)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
