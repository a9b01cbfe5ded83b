"""Linear layers while text is generated: a few rows at a time, by kernels made for that (kernels/generation.py)."""

from torch import Tensor, is_inference_mode_enabled, nn
from torch.nn.functional import linear

from weitiao.model.kernels.generation import generation_kernels


def linear_few_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias, [..., K] -> [..., N]; by the kernels in inference mode, where there are few rows."""
    if not is_inference_mode_enabled() or x.device.type != "cpu":
        return linear(x, weight, bias)
    kernels = generation_kernels()
    same = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
    if kernels is None or not same or x.numel() > kernels.max_rows.get(x.dtype, 0) * x.shape[-1]:
        return linear(x, weight, bias)
    if not weight.is_contiguous() or not x.numel():
        return linear(x, weight, bias)
    flat = x.reshape(-1, x.shape[-1]) if x.ndim != 2 else x
    y = kernels.linear(flat.contiguous(), weight, bias)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """nn.Linear, fast with few rows."""

    def forward(self, input: Tensor) -> Tensor:
        return linear_few_rows(input, self.weight, self.bias)
