"""Swapped modules compute the same: the weights' names and every logit stay."""

import copy

import pytest
import torch
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from support.models import make_model
from weitiao.model.layers.dropout import Dropout
from weitiao.model.layers.swap import replace_modules


@pytest.mark.parametrize(("family", "written_in_parts"), [("gpt2", True), ("bert", False), ("t5", False)])
def test_swapped_layers_same_logits_and_weights(family: str, written_in_parts: bool) -> None:
    plain = make_model(family)
    swapped = copy.deepcopy(plain)
    replace_modules(swapped)
    assert list(swapped.state_dict()) == list(plain.state_dict())
    assert any(isinstance(x, NewGELUActivation) for x in plain.modules()) == written_in_parts
    assert not any(type(x) is nn.Dropout or isinstance(x, NewGELUActivation) for x in swapped.modules())
    ids = torch.arange(3, 12)[None]
    more = {"decoder_input_ids": ids} if family == "t5" else {}
    with torch.no_grad():
        expected, ours = (x.eval()(input_ids=ids, **more)[0] for x in (plain, swapped))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [NewGELUActivation, FastGELUActivation])
def test_gelu_tanh_equals_torch(kind: type[nn.Module]) -> None:
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    torch.testing.assert_close(nn.GELU("tanh")(x), kind()(x), rtol=1e-6, atol=1e-9)


def test_swapped_dropout_rate_and_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.3))).eval()
    replace_modules(model)
    module = model[1][0]
    assert isinstance(module, Dropout) and module.p == 0.3 and not module.training
    x = torch.ones(1000)
    assert torch.equal(module(x), x)
    model.train()
    assert 200 < int((module(x) == 0).sum()) < 400
    torch.manual_seed(0)
    ours, module.plain = module(x), True
    torch.manual_seed(0)
    plain = module(x)
    torch.manual_seed(0)
    assert torch.equal(plain, nn.functional.dropout(x, 0.3, True)) and not torch.equal(plain, ours)
