"""Dropout: the right share, the right size, the same mask again, and gradients through what was mask alone."""

import pytest
import torch
from torch import nn

from weitiao.model.layers.dropout import apply_dropout, dropout_rate


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_rate_and_mean(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n = 1_000_003  # not a multiple of four
    y = apply_dropout(torch.ones(n, dtype=dtype), p)
    mask = y != 0
    spread = (p * (1 - p) / n) ** 0.5
    assert y.dtype == dtype and abs(float(mask.double().mean()) - (1 - p)) < 4 * spread + 1e-5
    assert torch.allclose(y[mask].float(), torch.tensor(1 / (1 - p)), rtol=1e-3 if dtype == torch.float32 else 1e-2)
    lanes = mask[: n // 4 * 4].view(-1, 4).double().mean(0)  # the four elements of one draw all have the same rate
    assert (lanes - (1 - p)).abs().max() < 8 * spread + 1e-5
    pairs = torch.corrcoef(mask[: n // 4 * 4].view(-1, 4).double().T) - torch.eye(4)
    assert pairs.abs().max() < 0.01  # and are independent


def test_dropout_mask_from_generator_state() -> None:
    x = torch.randn(7, 5)
    state = torch.get_rng_state()
    first, second = apply_dropout(x, 0.5), apply_dropout(x, 0.5)
    torch.set_rng_state(state)
    assert torch.equal(apply_dropout(x, 0.5), first) and not torch.equal(first, second)


def test_dropout_gradients() -> None:
    x = torch.randn(64, 33, dtype=torch.float64, requires_grad=True)
    state = torch.get_rng_state()
    y = apply_dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    factor = torch.where(y == 0, 0.0, y.detach() / x.detach())
    torch.testing.assert_close(gradient, 2 * x.detach() * factor * factor)

    def dropout_again(z: torch.Tensor) -> torch.Tensor:
        torch.set_rng_state(state)
        return apply_dropout(z, 0.3)

    assert torch.autograd.gradcheck(dropout_again, (torch.randn(4, 3, dtype=torch.float64, requires_grad=True),))


def test_dropout_off_in_eval() -> None:
    x, module = torch.randn(8), nn.Dropout(0.4)
    state = torch.get_rng_state()
    assert dropout_rate(module) == 0.4 and dropout_rate(module.eval()) == 0.0
    assert apply_dropout(x, 0.0) is x and torch.equal(torch.get_rng_state(), state)
