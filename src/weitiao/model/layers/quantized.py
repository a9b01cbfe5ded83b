"""A frozen linear layer whose weight is stored in 4 or 8 bits and computed with in full.

    4 bits   64 weights in a row share their largest absolute value m; each is the nearest of 16 numbers times m.
             nf4: numbers that a normal distribution meets equally often; fp4: 4-bit floats. Double quantisation stores
             the m's in 8 bits too: 4.13 bits a weight instead of 4.5. (Dettmers et al. 2023, arXiv 2305.14314, sec. 3)
    8 bits   w = q m / 127, m the largest absolute value of its row. (Dettmers et al. 2022, arXiv 2208.07339, sec. 2.1)

    x [T, D_in] --> W x + b          W = unpack(packed) [D_out, D_in], made for each product and thrown away after it

Only storage is in few bits: activations are never rounded, so a row's answer does not depend on its neighbours. (LLM.int8
rounds them too, and treats a column apart as soon as any row of the batch has an outlier in it.) Weights are rounded to
bf16 before they are packed, so that a run in bf16 and its merge in fp32 are about one and the same base.
"""

import importlib
import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from weitiao.core.hardware import needs
from weitiao.model.layers.saved_tensors import in_autocast

BLOCK = 64  # weights that share a scale
NESTED = 256  # scales that share a scale


class QuantizedLinear(nn.Module):
    """Stands in the place of a linear layer."""

    packed: nn.Parameter
    absmax: nn.Parameter

    def __init__(self, layer: nn.Module, bits: int, quant_type: str, double_quant: bool, device: torch.device) -> None:
        super().__init__()
        weight: Any = layer.weight
        bias: Any = layer.bias
        self.transposed, self.dtype = isinstance(layer, Conv1D), weight.dtype
        rows = weight.detach().to(device).T if self.transposed else weight.detach().to(device)  # [D_out, D_in]
        self.shape, self.bits, self.quant_type = tuple(rows.shape), bits, quant_type
        rows = rows.bfloat16().contiguous()
        stored = _pack_8bit(rows) if bits == 8 else _pack_4bit(rows, quant_type, double_quant)
        for name, tensor in stored.items():  # parameters, so that it is seen if they move
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.bias = None if bias is None else nn.Parameter(bias.detach().to(device), requires_grad=False)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """[D_out, D_in] in `dtype`."""
        if self.bits == 8:
            return (packed * (self.absmax / 127)[:, None]).to(dtype)
        return _unpack_4bit(packed, self, self.quant_type, dtype)[: self.shape[0] * self.shape[1]].view(self.shape)

    @property
    def weight(self) -> Tensor:
        """[D_out, D_in], made anew each time."""
        return self.unpack(self.packed, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _Frozen.apply(in_autocast(x), self.packed, self.bias, self.unpack)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The layer as it was, with the weight that is stored."""
        rows, columns = self.shape
        with torch.device("meta"):
            layer = Conv1D(rows, columns) if self.transposed else nn.Linear(columns, rows, bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight.T.contiguous() if self.transposed else self.weight, requires_grad=False)
        layer.bias = self.bias  # pyright: ignore[reportAttributeAccessIssue]
        return layer


class _Frozen(torch.autograd.Function):
    """x W^T + b; between forward and backward only the packed weight is kept. dx = g W."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: Tensor, bias: Tensor | None, unpack: Any) -> Tensor:
        ctx.unpack, ctx.bias_dtype = unpack, None if bias is None else bias.dtype
        ctx.save_for_backward(packed)
        return linear(x, unpack(packed, x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (packed,), g = ctx.saved_tensors, grads[0]
        dx = g @ ctx.unpack(packed, g.dtype) if ctx.needs_input_grad[0] else None
        db = g.flatten(0, -2).sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[2] else None
        return dx, None, db, None


def _pack_8bit(rows: Tensor) -> dict[str, Tensor]:
    absmax = rows.abs().amax(1).float()  # [D_out]
    whole = (rows.float() * (127 / absmax.clamp(min=1e-30))[:, None]).round()
    return {"packed": whole.to(torch.int8), "absmax": absmax}


def _pack_4bit(rows: Tensor, quant_type: str, double_quant: bool) -> dict[str, Tensor]:
    """In the format of bitsandbytes, but packed here: its versions round ties differently, and a run must find the base
    it was trained on. Filled up to whole blocks: odd widths make it compile a kernel on a CPU."""
    kernels = functional()
    which, absmax = _nearest(_blocks(rows.flatten().float(), BLOCK), kernels.get_4bit_type(quant_type, rows.device))
    stored = {"packed": (which[::2] << 4 | which[1::2])[:, None], "absmax": absmax}
    if double_quant:
        mean = absmax.double().mean().float()
        small, absmax_absmax = _nearest(_blocks(absmax - mean, NESTED), kernels.create_dynamic_map().to(rows.device))
        stored |= {"absmax": small[: len(absmax)], "absmax_absmax": absmax_absmax, "absmax_mean": mean}
    return stored


def _blocks(flat: Tensor, width: int) -> Tensor:
    return pad(flat, (0, -len(flat) % width)).view(-1, width)


def _nearest(blocks: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the code's numbers each value is nearest to, end to end; and each block's largest absolute value."""
    absmax = blocks.abs().amax(1)
    numbers, order = code.sort(stable=True)
    scaled = blocks / absmax.clamp(min=1e-30)[:, None]
    found = torch.bucketize(scaled.flatten(), (numbers[1:] + numbers[:-1]) / 2, out_int32=True)
    return order.to(torch.uint8)[found], absmax


def _unpack_4bit(packed: Tensor, of: nn.Module, quant_type: str, dtype: torch.dtype) -> Tensor:
    """The blocks, end to end."""
    kernels, absmax = functional(), of.get_parameter("absmax").data
    if absmax.dtype == torch.uint8:
        mean, of_absmax = of.get_parameter("absmax_mean").data, of.get_parameter("absmax_absmax").data
        absmax = kernels.dequantize_blockwise(absmax, absmax=of_absmax, blocksize=NESTED) + mean
    state = kernels.QuantState(
        absmax=absmax, shape=(len(absmax), BLOCK), dtype=dtype, blocksize=BLOCK, quant_type=quant_type
    )
    return kernels.dequantize_4bit(packed.data, state).flatten()


@cache
def functional() -> Any:
    """The kernels of bitsandbytes.

    Raises:
        RecipeError: it is not installed.
    """
    needs("bitsandbytes", "qlora", "method: qlora with 4 bits")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a CPU product that is not used here
    return importlib.import_module("bitsandbytes.functional")
