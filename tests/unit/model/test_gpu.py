"""What only a GPU can show. Skipped elsewhere, with the reason."""

import pytest
import torch

from support.rows import LENGTHS, batch_of, make_rows
from weitiao.model.layers import attention
from weitiao.model.layers.quantized import QuantizedLinear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("window", [None, 4])
def test_varlen_equals_grouped_sdpa(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flash call over all segments gives what a causal call for each gives, forward and backward."""
    batch = batch_of(make_rows()).to("cuda")
    torch.manual_seed(0)
    shape = (sum(LENGTHS), 8, 64)
    results = []
    q, k, v = (torch.randn(*shape, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    for use_varlen in (True, False):
        if not use_varlen:
            monkeypatch.setattr(attention, "_varlen_attention", lambda: None)
        a, b, c = (x.clone().requires_grad_() for x in (q, k[:, :2], v[:, :2]))
        out = attention.attend(a, b, c, batch, window=window)
        out.float().pow(2).sum().backward()
        results.append((out.detach(), a.grad, b.grad, c.grad))
    for ours, plain in zip(*results):
        assert (ours.float() - plain.float()).abs().max() <= 2e-2 * plain.float().abs().max()


@pytest.mark.parametrize(("bits", "quant_type"), [(4, "nf4"), (4, "fp4"), (8, "nf4")])
def test_gpu_packing_equals_cpu(bits: int, quant_type: str) -> None:
    """A run that was trained on a GPU is opened on a CPU: the same base."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(256, 192), torch.randn(8, 256)
    on_cpu, on_gpu = (QuantizedLinear(layer, bits, quant_type, True, torch.device(device)) for device in ("cpu", "cuda"))
    for name, tensor in on_cpu.named_parameters():
        assert torch.equal(tensor, on_gpu.get_parameter(name).cpu()), name
    torch.testing.assert_close(on_gpu.weight.cpu(), on_cpu.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(on_gpu(x.cuda()).cpu(), on_cpu(x), rtol=1e-3, atol=1e-3)
