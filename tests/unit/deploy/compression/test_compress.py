"""Compression by the formulas: what is rounded, what is pruned, which layers go, and files that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file
from torch import nn

from support.compression import save_wide_model
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.quantization import QuantizationScheme, as_tensors, from_tensors, quantize, unpack
from weitiao.core.registry import create
from weitiao.deploy.compression.prune_weights import keep_mask
from weitiao.deploy.compression.rewrite import read_subject, rewrite
from weitiao.deploy.compressors.drop_layers import least_influential, most_similar_block
from weitiao.model.layers.compressed_linear import CompressedLinear
from weitiao.model.loading.load import load_architecture, load_base
from weitiao.pipeline.compression import compressor_of

SCHEMES = [
    QuantizationScheme(8),
    QuantizationScheme(4, 32),
    QuantizationScheme(4, 64, symmetric=False),
    QuantizationScheme(8, 32, symmetric=False),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_half_a_step_is_the_largest_error(scheme: QuantizationScheme) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    stored = quantize(weight, scheme, torch.float32)
    step = stored.scale.repeat_interleave(128 // stored.scale.shape[1], 1)
    assert ((stored.dequantized(torch.float32) - weight).abs() <= 0.51 * step).all()
    tensors = {key.removeprefix("x."): x for key, x in as_tensors("x", stored, scheme).items()}
    again = from_tensors(tensors, scheme)
    assert torch.equal(again.codes, stored.codes) and torch.equal(again.scale, stored.scale)
    assert again.zero_point is None or torch.equal(again.zero_point, stored.zero_point)  # pyright: ignore[reportArgumentType]
    theirs = unpack_from_int32(tensors["weight_packed"], scheme.bits, torch.Size((48, 128)))
    assert torch.equal(theirs, unpack(tensors["weight_packed"], scheme.bits, 128)), "as compressed-tensors reads it"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_product_is_that_of_the_dequantized_weight(scheme: QuantizationScheme, dtype: torch.dtype, rows: int) -> None:
    generator = torch.Generator().manual_seed(1)
    stored = quantize(torch.randn(48, 128, generator=generator), scheme, torch.bfloat16)
    layer = CompressedLinear(stored, torch.randn(48, generator=generator).to(dtype), scheme, dtype)
    x = torch.randn(rows, 128, generator=generator).to(dtype)
    weight = stored.dequantized(torch.float32)
    with torch.no_grad():
        y = layer(x[None])[0]
        expected = nn.functional.linear(x.float(), weight, layer.bias.float())  # pyright: ignore[reportOptionalMemberAccess]
    assert (
        y.dtype == dtype
        and (y.float() - expected).abs().max() <= (2e-2 if dtype == torch.bfloat16 else 1e-5) * expected.abs().max()
    )
    assert (layer.weight.float() - weight).abs().max() <= 2e-2 * weight.abs().max()
    x.requires_grad_(True)
    layer(x).float().sum().backward()
    assert torch.allclose(x.grad.float(), weight.sum(0).expand_as(x), rtol=0.05, atol=0.2)  # pyright: ignore[reportOptionalMemberAccess]


def test_mask_by_hand() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0, 0.0, 0.0, 0.0, 9.0]])
    assert keep_mask(scores, 0.5, "unstructured").tolist() == [[True, False, True, True, False, False, False, True]]
    assert keep_mask(scores, 0.5, "2:4").tolist() == [[True, False, True, False, False, False, True, True]]


def test_wanda_by_hand(tmp_path: Path) -> None:
    """|W| ||x||_2 with the inputs that the layer itself sees, compared within each output."""
    folder = save_wide_model(tmp_path / "model")
    rows = [[1, 5, 9, 33], [7, 8, 200, 201, 11, 4]]
    subject = read_subject(folder, load_architecture(folder), rows)
    rewrite(subject, tmp_path / "out", create("compressor", "wanda", sparsity=0.25).plan(subject))  # pyright: ignore[reportArgumentType, reportCallIssue]
    model: Any = subject.open()
    layer, seen = model.model.layers[1].mlp.down_proj, []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    for ids in rows:
        model(input_ids=torch.tensor([ids]))
    scores = layer.weight.abs() * torch.cat(seen).norm(dim=0)
    expected = scores >= scores.sort(1).values[:, 32:33]
    got = load_file(tmp_path / "out" / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(got != 0, expected) and torch.equal(got[expected], layer.weight[expected])


def test_layers_that_change_least() -> None:
    angles = torch.tensor([[0, 0.3, 0.5, 0.9], [0, 0, 0.1, 0.2], [0, 0, 0, 0.4], [0, 0, 0, 0]])
    assert most_similar_block(angles, 2) == {1, 2} and most_similar_block(angles, 1) == {1}
    assert least_influential(1 - angles, 2) == {1, 0}


def test_dynamic_int8_refused_with_the_reason() -> None:
    with pytest.raises(RecipeError, match="48 % of the most probable tokens"):
        compressor_of("dynamic_int8", {})


def test_damaged_files_refused(tmp_path: Path) -> None:
    folder = save_wide_model(tmp_path / "model")
    subject = read_subject(folder, load_architecture(folder))
    rewrite(subject, tmp_path / "out", create("compressor", "int4").plan(subject))  # pyright: ignore[reportArgumentType, reportCallIssue]
    file = tmp_path / "out" / "model.safetensors"
    whole, name = load_file(file), "model.layers.0.mlp.up_proj"
    damages: list[dict[str, Any]] = [
        {f"{name}.weight_shape": torch.tensor([128, 2**40])},
        {f"{name}.weight_shape": torch.tensor([64, 64])},
        {f"{name}.weight_scale": whole[f"{name}.weight_scale"][:5].clone()},
        {f"{name}.weight_packed": whole[f"{name}.weight_packed"].float()},
        {f"{name}.weight_scale": None},
        {"other.layer.weight_packed": whole[f"{name}.weight_packed"].clone()},
    ]
    for damage in damages:
        save_file({key: x for key, x in {**whole, **damage}.items() if x is not None}, file)
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_base(tmp_path / "out", torch.float32, torch.device("cpu"))
    with pytest.raises(ModelError, match="quantized already"):
        read_subject(tmp_path / "out", load_architecture(folder))
    assert json.loads((folder / "config.json").read_text()).get("quantization_config") is None
