"""What is computed again instead of being saved: rounded weights, norms, gates. The gradients are the same bit-exactly."""

from types import ModuleType

import pytest
import torch
from torch import nn

from support.kernels import needs_kernels
from support.models import make_model
from weitiao.core.batch import pack
from weitiao.model.backbone.block_backbone import BlockBackbone
from weitiao.model.backbone.blocks import gemma, llama
from weitiao.model.layers import saved_tensors
from weitiao.model.layers.fused import RECOMPUTE, GeGLU, RMSNorm, SwiGLU
from weitiao.model.layers.saved_tensors import computing_in


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8, bias=False), nn.LayerNorm(8), nn.Linear(8, 3))


def gradients(model: nn.Module, context) -> list[torch.Tensor]:
    torch.manual_seed(1)
    x = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    with context:
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
    shapes, packed_tensors, pack = [], [], saved_tensors._pack
    monkeypatch.setattr(
        saved_tensors,
        "_pack",
        lambda tensor: (shapes.append(tensor.shape), packed_tensors.append(pack(tensor)), packed_tensors[-1])[-1],
    )
    with computing_in(model, torch.bfloat16):
        model(x)
        assert not torch.is_autocast_cache_enabled()  # it would store them
    weights = [p.shape for p in model.parameters() if p.ndim == 2]
    transposed = [shape[::-1] for shape in weights]
    assert sum(shape in transposed for shape in shapes) == 3  # autograd saves all three
    assert not [
        x for x in packed_tensors if isinstance(x, saved_tensors._Stored) and x.tensor.shape in (*transposed, *weights)
    ]


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
        packed_tensors, pack_one = set(), saved_tensors._pack

        def watched(tensor: torch.Tensor):
            packed = pack_one(tensor)
            if isinstance(packed, saved_tensors._Stored):
                packed_tensors.add(packed.tensor.untyped_storage())
            return packed

        with monkeypatch.context() as patched:
            patched.setattr(saved_tensors, "_pack", watched)
            hidden = BlockBackbone(block, model, torch.bfloat16)(batch)
        model.zero_grad()
        hidden.float().square().sum().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        return [hidden.detach(), *grads], sum(x.nbytes() for x in {x.data_ptr(): x for x in packed_tensors}.values())

    recomputed, less = run()
    monkeypatch.setattr(saved_tensors, "RECOMPUTE", {})
    stored, more = run()
    assert len(recomputed) > 20 and all(torch.equal(a, b) for a, b in zip(recomputed, stored, strict=True))
    width, inner = model.config.hidden_size, model.config.intermediate_size
    assert more - less == 2 * batch.tokens * model.config.num_hidden_layers * (2 * width + inner)


def test_torch_node_names() -> None:
    """A torch release that renames its autograd nodes would silently lose the savings of layers/saved_tensors.py."""
    layer, chains = nn.Linear(8, 16), []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        nodes, node = [], tensor.grad_fn
        while node is not None:
            nodes.append(node)
            node = node.next_functions[0][0] if node.next_functions else None
        chains.append(nodes)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), hooks:
        layer(torch.randn(5, 8, requires_grad=True))
    names = [[node.name() for node in nodes] for nodes in chains]
    weight = [nodes for nodes in chains if nodes and getattr(nodes[-1], "variable", None) is layer.weight]
    weight_names = [[node.name() for node in nodes[:-1]] for nodes in weight]
    assert weight_names == [[saved_tensors.TRANSPOSE_NODE, saved_tensors.COPY_NODE]], (
        f"torch {torch.__version__} has other autograd nodes between a weight and its rounded copy than saved_tensors.py "
        f"expects: {names}. Set TRANSPOSE_NODE and COPY_NODE there to the new names."
    )


@pytest.mark.parametrize("function", [RMSNorm, SwiGLU, GeGLU])
def test_custom_function_node_names(function: type[torch.autograd.Function]) -> None:
    """torch names the node of a custom function after its class; fused.RECOMPUTE relies on it."""
    second = (torch.ones(64), 1e-5) if function is RMSNorm else (torch.randn(3, 64),)
    node = function.apply(torch.randn(3, 64, requires_grad=True), *second).grad_fn
    assert node.name() in RECOMPUTE, (
        f"torch {torch.__version__} names the node of {function.__name__} {node.name()!r}; fused.RECOMPUTE knows only "
        f"{sorted(RECOMPUTE)}."
    )
    assert hasattr(node, "kernels") and len(node.saved_tensors) >= 2
