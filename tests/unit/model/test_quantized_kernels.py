"""Compiled products with weights of 4 and 8 bits: equal to the dequantized product, for any number of rows and any CPU."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weitiao.core.quantization import QuantizationScheme, quantize
from weitiao.model.kernels import quantized as kernels_module
from weitiao.model.kernels.library import kernels_disabled
from weitiao.model.kernels.quantized import quantized_kernels
from weitiao.model.layers.compressed_linear import CompressedLinear
from weitiao.model.layers.quantized import QuantizedLinear

WIDTH, COLUMNS = 192, 101
SCHEMES = {
    "int8": QuantizationScheme(8),
    "int8 g32 zeros": QuantizationScheme(8, 32, symmetric=False),
    "int4 g32": QuantizationScheme(4, 32),
    "int4 g64 zeros": QuantizationScheme(4, 64, symmetric=False),
}
BNB = {"nf4 nested": (4, "nf4", True), "nf4": (4, "nf4", False), "fp4": (4, "fp4", True), "8 bits": (8, "nf4", True)}


def layer_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    plain = nn.Linear(WIDTH, COLUMNS, dtype=dtype)
    if name in BNB:
        return QuantizedLinear(plain, *BNB[name], torch.device("cpu"))
    scheme = SCHEMES[name]
    return CompressedLinear(quantize(plain.weight.detach(), scheme, torch.bfloat16), plain.bias.detach(), scheme, dtype)


def inputs(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)).to(dtype)


@pytest.fixture(params=["", "-mno-avx512f", "-mno-avx512f -mno-avx2"], ids=["own CPU", "AVX2", "neither"])
def compiled(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("CXX", f"g++ {request.param}")
    kernels_module._kernels.cache_clear()
    found = quantized_kernels()
    assert found is not None, "they could not be compiled, or differ from torch"
    yield found
    kernels_module._kernels.cache_clear()


@torch.no_grad()
@pytest.mark.parametrize("name", [*SCHEMES, *BNB])
def test_equal_to_the_dequantized_product(name: str, compiled: Any) -> None:
    layer = layer_of(name)
    with kernels_disabled():
        weight = layer.weight
    assert float((compiled.dequantized(layer.stored.as_c(), layer.stored.bits, torch.float32) - weight).abs().max()) <= 1e-6
    for rows in (1, 2, 3, 4, 5, 7, 8, 9, 31):
        x = inputs(rows)
        y = compiled.linear(x, layer.stored.as_c(), layer.stored.bits, layer.bias)
        expected = linear(x.double(), weight.double(), layer.bias.double())
        assert float((y - expected).abs().max() / expected.abs().max()) <= 1e-6
        assert torch.equal(layer(x), y), "a layer uses them"
        assert torch.equal(layer(x[None])[0], y)


@torch.no_grad()
@pytest.mark.parametrize("name", [*SCHEMES, *BNB])
def test_bf16_is_rounded_once(name: str) -> None:
    layer = layer_of(name, torch.bfloat16)
    with kernels_disabled():
        weight = layer.unpack(layer.packed, torch.float32)
    for rows in (1, 8, 13):
        x = inputs(rows, torch.bfloat16)
        expected = linear(x.float(), weight, layer.bias.float())
        y = layer(x)
        assert y.dtype == torch.bfloat16 and torch.allclose(y.float(), expected, rtol=2**-8, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [*SCHEMES, *BNB])
def test_row_alone_and_in_a_batch_is_the_same_bits(name: str) -> None:
    layer, x = layer_of(name), inputs(13)
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(len(x)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["int4 g32", "nf4 nested"])
def test_copies_and_converted_layers_read_their_own_weights(name: str) -> None:
    layer, x = layer_of(name), inputs(3)
    y = layer(x)
    copied = copy.deepcopy(layer)
    layer.packed.zero_()
    assert torch.equal(copied(x), y) and not torch.equal(layer(x), y)
    copied.to(torch.bfloat16)
    assert copied.packed.dtype == torch.uint8
    converted = copied(x.bfloat16()).float()
    assert float((converted - y).abs().max() / y.abs().max()) <= 2e-2


@torch.no_grad()
def test_widths_that_kernels_cannot_read() -> None:
    scheme = QuantizationScheme(4, 24)
    stored = quantize(torch.randn(7, 72), scheme, torch.float32)
    layer, x = CompressedLinear(stored, None, scheme, torch.float32), torch.randn(2, 72)
    assert layer.stored.as_c() is None
    assert torch.allclose(layer(x), x @ stored.dequantized(torch.float32).T, atol=1e-5)
    odd = QuantizationScheme(4)
    stored = quantize(torch.randn(7, 33), odd, torch.float32)
    layer, x = CompressedLinear(stored, None, odd, torch.float32), torch.randn(2, 33)
    assert torch.allclose(layer(x), x @ stored.dequantized(torch.float32).T, atol=1e-5)


def test_no_dequantized_copy_is_kept() -> None:
    layer, x = layer_of("int4 g32"), inputs(2)
    with torch.no_grad():
        layer(x)
    kept = {id(y): y for y in [*layer.parameters(), *vars(layer.stored).values()] if isinstance(y, Tensor)}
    assert sum(y.nbytes for y in kept.values()) <= COLUMNS * (WIDTH / 2 + WIDTH / 32 * 2 + 4) + 64
