"""Four bits per weight as bitsandbytes stores them: nf4 and fp4, with double quantization of the scales.

64 weights share their largest absolute value m; each is the nearest of 16 values times m.
nf4: values that a normal distribution takes equally often; fp4: 4-bit floats. Double quantization stores the m's in 8
bits too: 4.13 bits per weight instead of 4.5. (Dettmers et al. 2023, arXiv 2305.14314, sec. 3)
"""

import importlib
import json
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from weitiao.core.errors import InvalidValue
from weitiao.core.hardware import needs

BLOCK = 64  # weights that share a scale
NESTED = 256  # scales that share a scale
STATE = "quant_state.bitsandbytes__"


def pack_4bit(rows: Tensor, quant_type: str, double_quant: bool) -> dict[str, Tensor]:
    """The tensors of a weight in the format of bitsandbytes.

    They are packed here and not by bitsandbytes, because its versions round ties differently, and a resumed run must have
    the base it was trained on. The last block is padded: bitsandbytes would compile a kernel for odd sizes on a CPU.
    """
    functional = bnb_functional()
    codes, absmax = _nearest_codes(
        _blocks(rows.flatten().float(), BLOCK), functional.get_4bit_type(quant_type, rows.device)
    )
    stored = {"packed": (codes[::2] << 4 | codes[1::2])[:, None], "absmax": absmax}
    if double_quant:
        mean = absmax.double().mean().float()
        code = functional.create_dynamic_map().to(rows.device)
        absmax_codes, absmax_absmax = _nearest_codes(_blocks(absmax - mean, NESTED), code)
        stored |= {"absmax": absmax_codes[: len(absmax)], "absmax_absmax": absmax_absmax, "absmax_mean": mean}
    return stored


def _blocks(flat: Tensor, width: int) -> Tensor:
    return pad(flat, (0, -len(flat) % width)).view(-1, width)


def _nearest_codes(blocks: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the nearest value of `code` for each number, flat; and each block's largest absolute value."""
    absmax = blocks.abs().amax(1)
    values, order = code.sort(stable=True)
    scaled = blocks / absmax.clamp(min=1e-30)[:, None]
    nearest = torch.bucketize(scaled.flatten(), (values[1:] + values[:-1]) / 2, out_int32=True)
    return order.to(torch.uint8)[nearest], absmax


@cache
def bnb_functional() -> Any:
    """The module bitsandbytes.functional.

    Raises:
        RecipeError: bitsandbytes is not installed.
    """
    needs("bitsandbytes", "qlora", "method: qlora with 4 bits")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about a CPU product that this code does not use
    return importlib.import_module("bitsandbytes.functional")


# -- files ------------------------------------------------------------------------------------------------------------


def as_tensors(name: str, weight: Tensor, quant_type: str, double_quant: bool) -> dict[str, Tensor]:
    """What a file holds of a weight, by name, as bitsandbytes' Linear4bit reads it.

    <name>                       uint8 [n / 2, 1]        <name>.absmax, .quant_map, .nested_absmax, .nested_quant_map
    <name>.quant_state.bitsandbytes__nf4                 JSON: shape, dtype, block sizes, the mean of the scales
    """
    functional = bnb_functional()
    packed = pack_4bit(weight.bfloat16(), quant_type, double_quant)
    nested: dict[str, Any] = {}
    if double_quant:
        code = functional.create_dynamic_map()
        state2 = functional.QuantState(absmax=packed["absmax_absmax"], blocksize=NESTED, code=code, dtype=torch.float32)
        nested = {"offset": packed["absmax_mean"], "state2": state2}
    state = functional.QuantState(
        absmax=packed["absmax"],
        shape=weight.shape,
        code=functional.get_4bit_type(quant_type, "cpu"),
        blocksize=BLOCK,
        quant_type=quant_type,
        dtype=weight.dtype,
        **nested,
    )
    tensors = {f"{name}.{key}": x.contiguous() for key, x in state.as_dict(packed=True).items()}
    return {name: packed["packed"][: -(-weight.numel() // 2)].contiguous(), **tensors}


def from_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[int, int], str]:
    """(the tensors of `pack_4bit`, the weight's shape, nf4 or fp4) from what a file holds of a weight.

    Args:
        tensors: "" -> the packed weight, "absmax" -> ...

    Raises:
        InvalidValue: they are not as bitsandbytes writes them.
    """
    key = next((x for x in tensors if x.startswith(STATE)), "")
    try:
        state = json.loads(bytes(tensors[key].tolist()))
        shape, packed, absmax = tuple(state["shape"]), tensors[""], tensors["absmax"]
        size, nested = shape[0] * shape[1], "nested_absmax" in tensors
        sizes = state["blocksize"], state.get("nested_blocksize", NESTED)
        fits = sizes == (BLOCK, NESTED) and packed.dtype == torch.uint8 and packed.numel() == -(-size // 2)
        if not fits or len(absmax) != -(-size // BLOCK) or key.removeprefix(STATE) not in ("nf4", "fp4"):
            raise ValueError
        stored = {"packed": pad(packed.view(-1, 1), (0, 0, 0, (-size % BLOCK) // 2)), "absmax": absmax}
        if nested:
            mean = torch.tensor(float(state["nested_offset"]))
            stored |= {"absmax_absmax": tensors["nested_absmax"].float(), "absmax_mean": mean}
            if absmax.dtype != torch.uint8 or len(tensors["nested_absmax"]) != -(-len(absmax) // NESTED):
                raise ValueError
    except (KeyError, ValueError, TypeError, IndexError, RecursionError):
        raise InvalidValue("a weight is not as bitsandbytes writes 4 bits in blocks of {block}", block=BLOCK) from None
    return stored, shape, key.removeprefix(STATE)
