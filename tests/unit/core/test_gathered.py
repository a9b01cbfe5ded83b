"""Rows that are asked for many times: their gradients add up in fp32, the same in every run."""

import torch

from weitiao.core.gathered import index_select_fp32_grad


def test_gather_equals_indexing() -> None:
    x, at = torch.randn(7, 3, 2, requires_grad=True), torch.tensor([[6, 0, 0], [1, 6, 6]])
    assert torch.equal(index_select_fp32_grad(x, at), x[at])
    assert torch.autograd.gradcheck(lambda y: index_select_fp32_grad(y, at), x.detach().double().requires_grad_())


def test_gather_gradient_summed_in_fp32() -> None:
    x = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    index_select_fp32_grad(x, torch.zeros(4096, dtype=torch.long)).sum().backward()
    assert x.grad is not None and x.grad[0].tolist() == [4096.0] * 4 and not x.grad[1].any()
    torch_s = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    torch_s[torch.zeros(4096, dtype=torch.long)].sum().backward()
    assert torch_s.grad is not None and torch_s.grad[0, 0] != 4096, "torch's own would do"


def test_gather_gradient_deterministic() -> None:
    torch.manual_seed(0)
    at, g, found = torch.arange(200) % 3, torch.randn(200, 576), set()
    for _ in range(20):
        x = torch.zeros(3, 576, requires_grad=True)
        index_select_fp32_grad(x, at).backward(g)
        assert x.grad is not None
        found.add(x.grad.numpy().tobytes())
    assert len(found) == 1
