"""Weights in 4 and 8 bits: rounding error, what is stored, and that a run gives the same answers in another process."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from support.laws import attached, base_model, gap, perturb
from support.models import make_model
from support.parts import method_config
from support.processes import ForkServer
from support.rows import batch_of, make_rows
from weitiao.core.errors import RecipeError
from weitiao.core.method import Method
from weitiao.core.registry import create
from weitiao.model.layers.quantized import QuantizedLinear
from weitiao.pipeline.inference import open_model

CPU = torch.device("cpu")
FORMS = [(4, "nf4", True, 0.10), (4, "nf4", False, 0.10), (4, "fp4", True, 0.13), (8, "nf4", True, 0.01)]


def gaussian(rows: int, columns: int, transposed: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layer = Conv1D(rows, columns) if transposed else nn.Linear(columns, rows)
    nn.init.normal_(layer.weight, std=0.05)
    nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize(("bits", "quant_type", "double_quant", "error"), FORMS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(96, 64), (48, 32), (33, 31)])
def test_quantize_dequantize(
    shape: tuple, transposed: bool, bits: int, quant_type: str, double_quant: bool, error: float
) -> None:
    """Relative error of a Gaussian weight; the product is bit-exactly that of a layer with the rounded weight."""
    layer = gaussian(*shape, transposed)
    packed = QuantizedLinear(layer, bits, quant_type, double_quant, CPU)
    weight: Any = layer.weight
    weight = weight.T if transposed else weight
    assert 0 < (packed.weight - weight).norm() / weight.norm() < error
    plain, x = packed.plain(), torch.randn(5, shape[1], requires_grad=True)
    assert type(plain) is type(layer) and plain.weight.shape == layer.weight.shape
    ours, expected = packed(x), plain(x)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    (dx,), (expected_dx,) = torch.autograd.grad(ours.sum(), x), torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(dx, expected_dx, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_format_equals_bitsandbytes(quant_type: str, double_quant: bool) -> None:
    """It rounds as well as its own packing, the nf4 numbers are the same ones, and it takes 4.13 or 4.5 bits a weight."""
    from bitsandbytes import functional

    layer = gaussian(768, 512)
    weight: Any = layer.weight.detach()
    ours = QuantizedLinear(layer, 4, quant_type, double_quant, CPU)
    packed, state = functional.quantize_4bit(
        weight.bfloat16(), blocksize=64, quant_type=quant_type, compress_statistics=double_quant
    )
    state.dtype = torch.float32
    theirs = functional.dequantize_4bit(packed, state)
    errors = [float((x - weight).norm() / weight.norm()) for x in (ours.weight, theirs)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)
    assert quant_type == "fp4" or torch.equal(ours.packed, packed)  # fp4 has two noughts, and ties
    stored = sum(p.nbytes for name, p in ours.named_parameters() if name != "bias")
    assert 8 * stored / weight.numel() == pytest.approx(4.127 if double_quant else 4.5, abs=0.01)


def test_zeros_stay_zero() -> None:
    layer = nn.Linear(64, 4)
    nn.init.zeros_(layer.weight)
    for bits, quant_type, double_quant, _ in FORMS:
        assert not QuantizedLinear(layer, bits, quant_type, double_quant, CPU).weight.any()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantization_independent_of_precision(bits: int) -> None:
    """A base trained on in bf16 is merged in fp32: the same numbers are packed."""
    layer = gaussian(64, 64)
    one = QuantizedLinear(layer, bits, "nf4", True, CPU)
    other = QuantizedLinear(layer.to(torch.bfloat16), bits, "nf4", True, CPU)
    for name, tensor in one.named_parameters():
        assert name == "bias" or torch.equal(tensor, other.get_parameter(name)), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_no_dequantized_weight_saved_for_backward(bits: int, targets: Any) -> None:
    """All that autograd keeps and is not an activation ([30 rows ...]) is smaller than the smallest weight in fp32."""
    model, batch = attached("qlora", bits=bits, target_modules=targets, rank=2), batch_of(make_rows(lengths=(30,)))
    weights = {module.shape for module in model.model.modules() if isinstance(module, QuantizedLinear)}
    stored: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (stored.append(x), x)[1], lambda x: x):
        model.logprobs(batch).sum().backward()
    shapes = {tuple(x.shape) for x in stored if x.is_floating_point()}
    assert len(weights) >= 3 and not shapes & (weights | {shape[::-1] for shape in weights})
    assert any(x.dtype in (torch.uint8, torch.int8) for x in stored)


@pytest.mark.parametrize("bits", [4, 8])
def test_all_linear_layers_but_head_quantized(bits: int) -> None:
    model = attached("qlora", bits=bits, target_modules=["q_proj"]).model
    packed = {name.removesuffix(".base_layer") for name, x in model.named_modules() if isinstance(x, QuantizedLinear)}
    linear = {name for name, x in make_model().named_modules() if isinstance(x, nn.Linear)}
    assert packed == linear - {"lm_head"} and len(packed) == 21
    assert model.get_input_embeddings().weight.dtype == torch.float32


def test_disabled_method_is_quantized_base() -> None:
    batch, plain = batch_of(make_rows()), attached("full")
    for bits, least, most in ((4, 1e-2, 0.5), (8, 1e-4, 2e-2)):
        model = attached("qlora", bits=bits)
        perturb(model)
        with model.reference():
            assert least < gap(model.logits(batch), plain.logits(batch)) < most


def test_eight_bit_variant() -> None:
    """`base_of` of the laws really is rounded."""
    one, other = base_model("qlora_8bit").state_dict(), make_model().state_dict()
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert len(changed) == 21 and all(name.endswith("_proj.weight") for name in changed)


IDS = [[5, 9, 40, 200, 17]]


def last_logits(folder: str) -> list[float]:
    with torch.no_grad():
        return open_model(folder).model.model(input_ids=torch.tensor(IDS)).logits[0, -1].tolist()


def write_last_logits(folder: str, file: Path) -> None:
    file.write_text(json.dumps(last_logits(folder)))


@pytest.mark.parametrize("method", ["qlora", "qlora_8bit"])
def test_reopened_in_other_process_same_answers(
    method: str, train_tiny: Any, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Only the change is stored; the base is quantized again, bit-exactly."""
    run = train_tiny(method=method_config(method, rank=4))
    names = set(load_names(run.folder / "best" / "weights.safetensors"))
    assert names and all(name.endswith(("lora_A", "lora_B")) for name in names)
    child = fork_server.call(write_last_logits, str(run.folder), tmp_path / "logits.json")
    assert child.wait() == 0, child.output
    assert json.loads((tmp_path / "logits.json").read_text()) == last_logits(str(run.folder))


def load_names(file: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def test_missing_package_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *x: None if name == "bitsandbytes" else real(name, *x))
    from weitiao.model.layers import quantized

    quantized.bnb_functional.cache_clear()
    with pytest.raises(
        RecipeError, match=r"needs the package 'bitsandbytes'. Install it with: pip install 'weitiao\[qlora\]'"
    ):
        create(Method, "qlora").attach(make_model())
    create(Method, "qlora", bits=8).attach(make_model())


def test_trained_share_counts_weights(train_tiny: Any, tmp_path: Path) -> None:
    reasons = []
    for name in ("lora", "qlora"):
        run = train_tiny(method={"name": name, "rank": 4}, out=str(tmp_path / name))
        reasons.append(str(run.decisions["model.trainable_weights"].reason).removeprefix(f"{name}: "))
    assert reasons[0] == reasons[1] and "% of " in reasons[0]
