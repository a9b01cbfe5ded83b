"""Products with few rows and attention to cached keys: compiled kernels next to torch, and the same bits in any company."""

import pytest
import torch
from torch import Tensor

from weitiao.model.kernels.generation import GenerationKernels, generation_kernels
from weitiao.model.layers.attention_cached import KVCache, NewTokens, attend_cached, cached_batch

DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 5e-3)]
TOKENS = 75


def kernels() -> GenerationKernels:
    found = generation_kernels()
    if found is None:
        pytest.skip("there are no compiled kernels here")
    return found


def error(y: Tensor, expected: Tensor) -> float:
    return float((y.float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@pytest.mark.parametrize("width", [7, 16, 83, 576])
def test_product(width: int, dtype: torch.dtype, limit: float) -> None:
    """Any number of rows and columns; a row's bits are those that it has alone."""
    torch.manual_seed(0)
    for rows in (1, 2, 3, 5, 6, 9, 33):
        for columns in (1, 3, 8, 101):
            x, w, bias = (torch.randn(size).to(dtype) for size in ((rows, width), (columns, width), (columns,)))
            y = kernels().linear(x, w, bias)
            assert error(y, x.float() @ w.float().T + bias.float()) <= limit
            assert all(torch.equal(kernels().linear(x[i : i + 1], w, bias)[0], y[i]) for i in range(rows))


def attended(qkv: tuple[Tensor, ...], parts: list[int], window: int | None, softcap: float | None) -> Tensor:
    """[TOKENS, H, d_v]: a row's tokens, in parts."""
    cache, outputs, past = KVCache(1 << 30), [], 0
    for count in parts:
        batch = cached_batch(cache, [NewTokens(0, past, count)], [[1] * count], torch.device("cpu"))
        q, k, v = (x[past : past + count] for x in qkv)
        outputs.append(attend_cached(q, k, v, batch, None, window, softcap))
        past += count
    return torch.cat(outputs)


@pytest.mark.parametrize(("dtype", "limit"), DTYPES)
@pytest.mark.parametrize(
    ("shapes", "window", "softcap"),
    [
        ([(9, 64), (3, 64), (3, 64)], None, None),
        ([(4, 24), (4, 24), (4, 40)], None, None),
        ([(8, 16), (1, 16), (1, 16)], 20, None),
        ([(6, 64), (2, 64), (2, 80)], 5, 30.0),
    ],
)
def test_attention(
    shapes: list[tuple[int, int]],
    window: int | None,
    softcap: float | None,
    dtype: torch.dtype,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equals torch's in fp32; the same bits, however a prompt is cut."""
    kernels()
    torch.manual_seed(0)
    qkv = tuple(torch.randn(TOKENS, *shape).to(dtype) for shape in shapes)
    y = attended(qkv, [TOKENS], window, softcap)
    assert torch.equal(y, attended(qkv, [30, 1, 1, TOKENS - 32], window, softcap))
    assert torch.equal(y, attended(qkv, [1] * TOKENS, window, softcap))
    monkeypatch.setattr("weitiao.model.layers.attention_cached.generation_kernels", lambda: None)
    assert error(y, attended(tuple(x.float() for x in qkv), [TOKENS], window, softcap)) <= limit
