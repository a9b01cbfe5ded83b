"""What is made again instead of being kept: rounded weights, norms, gates; what is learnt stays the same to the bit."""

from types import ModuleType

import pytest
import torch
from torch import nn

from support.kernels import needs_kernels
from support.models import make_model
from weitiao.core.batch import pack
from weitiao.model.backbone.blocks import gemma, llama
from weitiao.model.backbone.decoder import BlockBackbone
from weitiao.model.layers import saved_tensors
from weitiao.model.layers.saved_tensors import computing_in


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3))


def gradients(model: nn.Module, how) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    with how:
        y = model(x)
    y.float().square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def test_gradients_equal_autocast_bit_exact() -> None:
    model, other = net(), net()
    ours = gradients(model, computing_in(model, torch.bfloat16))
    theirs = gradients(other, torch.autocast("cpu", torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_no_rounded_copy_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = net(), torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    seen, kept, pack = [], [], saved_tensors._pack
    monkeypatch.setattr(saved_tensors, "_pack", lambda one: (seen.append(one.shape), kept.append(pack(one)), kept[-1])[-1])
    with computing_in(model, torch.bfloat16):
        model(x)
        assert not torch.is_autocast_cache_enabled()  # it would hold them
    weights = [p.shape for p in model.parameters() if p.ndim == 2]
    turned = [shape[::-1] for shape in weights]
    assert sum(shape in turned for shape in seen) == 3  # autograd wanted to keep all three
    assert not [x for x in kept if isinstance(x, saved_tensors._Kept) and x.tensor.shape in (*turned, *weights)]


def test_weight_changed_before_backward_refused() -> None:
    model, x = net(), torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    with computing_in(model, torch.bfloat16):
        y = model(x)
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(RuntimeError, match="changed between"):
        y.sum().backward()


@needs_kernels
@pytest.mark.parametrize(("family", "block"), [("llama", llama), ("gemma3_text", gemma)])
def test_norm_and_gate_outputs_recomputed(family: str, block: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(family).to(torch.bfloat16)
    batch = pack([{"input_ids": list(range(n, 2 * n)), "labels": [1] * n} for n in (20, 9)])

    def run() -> tuple[list[torch.Tensor], int]:
        kept, pack_one = set(), saved_tensors._pack

        def watched(one: torch.Tensor):
            packed = pack_one(one)
            if isinstance(packed, saved_tensors._Kept):
                kept.add(packed.tensor.untyped_storage())
            return packed

        with monkeypatch.context() as patched:
            patched.setattr(saved_tensors, "_pack", watched)
            hidden = BlockBackbone(block, model, torch.bfloat16)(batch)
        model.zero_grad()
        hidden.float().square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [hidden.detach(), *grads], sum(x.nbytes() for x in {x.data_ptr(): x for x in kept}.values())

    sparing, less = run()
    monkeypatch.setattr(saved_tensors, "AGAIN", {})
    keeping, more = run()
    assert len(sparing) > 20 and all(torch.equal(a, b) for a, b in zip(sparing, keeping, strict=True))
    width, inner = model.config.hidden_size, model.config.intermediate_size
    assert more - less == 2 * batch.tokens * model.config.num_hidden_layers * (2 * width + inner)
