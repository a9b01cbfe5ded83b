"""Dropout: the right share, the right size, the same mask again, and gradients through what was kept alone."""

import pytest
import torch
from torch import nn

from weitiao.model.layers.dropout import drop, rate


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_rate_and_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 1_000_003  # no multiple of four
    y = drop(torch.ones(n, dtype=dtype), p)
    kept = y != 0
    spread = (p * (1 - p) / n) ** 0.5
    assert y.dtype == dtype and abs(float(kept.double().mean()) - (1 - p)) < 4 * spread + 1e-5
    assert torch.allclose(y[kept].float(), torch.tensor(1 / (1 - p)), rtol=1e-3 if dtype == torch.float32 else 1e-2)
    lanes = kept[: n // 4 * 4].view(-1, 4).double().mean(0)  # the four elements of one draw are all fair
    assert (lanes - (1 - p)).abs().max() < 8 * spread + 1e-5
    pairs = torch.corrcoef(kept[: n // 4 * 4].view(-1, 4).double().T) - torch.eye(4)
    assert pairs.abs().max() < 0.01  # and know nothing of each other


def test_dropout_mask_from_generator_state() -> None:
    x = torch.randn(7, 5)
    state = torch.get_rng_state()
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(drop(x, 0.5), first) and not torch.equal(first, second)


def test_dropout_gradients() -> None:
    x = torch.randn(64, 33, dtype=torch.float64, requires_grad=True)
    state = torch.get_rng_state()
    y = drop(x, 0.3)
    (found,) = torch.autograd.grad(y.square().sum(), x)
    mask = torch.where(y == 0, 0.0, y.detach() / x.detach())
    torch.testing.assert_close(found, 2 * x.detach() * mask * mask)

    def again(z: torch.Tensor) -> torch.Tensor:
        torch.set_rng_state(state)
        return drop(z, 0.3)

    assert torch.autograd.gradcheck(again, (torch.randn(4, 3, dtype=torch.float64, requires_grad=True),))


def test_dropout_off_in_eval() -> None:
    x, module = torch.randn(8), nn.Dropout(0.4)
    state = torch.get_rng_state()
    assert rate(module) == 0.4 and rate(module.eval()) == 0.0
    assert drop(x, 0.0) is x and torch.equal(torch.get_rng_state(), state)
