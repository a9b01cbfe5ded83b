"""Chooses how a model runs: the fastest forward pass that gives transformers' hidden states on a probe.

hand-written block, packed rows      blocks/<name>.py, where the family has one
transformers, packed rows            rows kept apart by our attention function
transformers, one row at a time      families that mix tokens outside of attention
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.batch import Batch, pack
from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision
from weitiao.core.lm_head import LMHead
from weitiao.core.messages import Message
from weitiao.core.registry import find_module, names
from weitiao.core.trainable_model import Backbone, TrainableModel
from weitiao.model.adapters.low_rank import LowRankLinear
from weitiao.model.adapters.module_structure import architecture_of, first_position, last_hidden, layer_stack
from weitiao.model.adapters.new_rows import num_frozen_rows, whole_weight
from weitiao.model.backbone import encoder_decoder
from weitiao.model.backbone.block_backbone import Block, BlockBackbone
from weitiao.model.kernels.library import kernels_for_logits
from weitiao.model.layers import attention
from weitiao.model.layers.dropout import Dropout
from weitiao.model.layers.few_rows import linear_few_rows
from weitiao.model.layers.saved_tensors import computing_in

# Largest accepted difference from transformers' hidden states, relative to the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
LOGITS_TOLERANCE = 2e-2
LONGEST_PROBE = 256  # tokens
KEY = "model.block"


def choose_backbone(model: PreTrainedModel, dtype: torch.dtype) -> tuple[Backbone, Decision]:
    """The fastest backbone whose hidden states equal those of transformers for each row alone, within TOLERANCE."""
    if architecture_of(model.config).kind == "encoder_decoder":
        return encoder_decoder.choose_backbone(model, lambda run: in_dtype(model, dtype, all_rows(run)), TOLERANCE[dtype])
    family = model.config.model_type
    one_by_one, packed = _transformers_backbones(model, dtype)
    no_block = Message("there is no hand-written block for {family}", family=family)
    for name in names(Block):
        block = find_module(Block, name)
        if family not in block.FAMILIES:
            continue
        block_backbone = BlockBackbone(block, model, dtype)
        difference = _difference(model, block_backbone, one_by_one)
        if difference <= TOLERANCE[dtype]:
            text = "the {name} block differs from transformers by at most {difference:.0e} on a probe"
            return block_backbone, Decision(KEY, name, Message(text, name=name, difference=difference))
        text = "the {name} block is not used: it differs from transformers by {difference:.0e} on a probe"
        no_block = Message(text, name=name, difference=difference)
    difference = _difference(model, packed, one_by_one)
    if difference <= TOLERANCE[dtype]:
        text = "{no_block}; packed rows differ from single rows by at most {difference:.0e} on a probe"
        return packed, Decision(KEY, "transformers", Message(text, no_block=no_block, difference=difference))
    text = "packed rows would affect each other in this family (by {difference:.0e} on a probe); single rows are slower"
    return one_by_one, Decision(KEY, "transformers, row by row", Message(text, difference=difference))


def unchecked_backbone(model: PreTrainedModel, dtype: torch.dtype) -> Backbone:
    """The backbone that `choose_backbone` would most likely choose: for a model without weights, where nothing can be
    compared. Not for encoder-decoder models."""
    for name in names(Block):
        if model.config.model_type in find_module(Block, name).FAMILIES:
            return BlockBackbone(find_module(Block, name), model, dtype)
    return _transformers_backbones(model, dtype)[1]


def use_reference_implementation(model: TrainableModel, dtype: torch.dtype) -> Decision:
    """Run transformers' forward pass and plain autograd from now on (`train.implementation: reference`).

    Only the method's own layers stay, by torch's functions. It is slower; the fast implementation is tested against it.
    """
    if model.architecture.kind != "encoder_decoder":
        one_by_one, packed = _transformers_backbones(model.model, dtype)
        close = _difference(model.model, packed, one_by_one) <= TOLERANCE[dtype]
        model.backbone = packed if close else one_by_one
    model.lm_head = replace(model.lm_head, plain=True)
    for module in model.model.modules():
        if isinstance(module, (LowRankLinear, Dropout)):
            module.plain = True
    return Decision(KEY, "transformers", "train.implementation is reference")


def in_dtype(model: nn.Module, dtype: torch.dtype, run: Backbone) -> Backbone:
    """The backbone `run`, computing in `dtype`."""

    def run_in_dtype(batch: Batch, rows: Tensor | None = None) -> Tensor:
        with computing_in(model, dtype):
            return run(batch, rows)

    return run_in_dtype


def all_rows(run: Callable[[Batch], Tensor]) -> Backbone:
    """A backbone from a forward pass that cannot leave out rows: the requested ones are selected afterwards."""
    return lambda batch, rows=None: run(batch) if rows is None else run(batch)[rows]


def _transformers_backbones(model: nn.Module, dtype: torch.dtype) -> tuple[Backbone, Backbone]:
    """transformers' forward pass, one row at a time (slow, the reference) and on packed rows."""
    one_by_one = in_dtype(model, dtype, all_rows(lambda batch: _one_by_one_forward(model, batch)))
    packed = in_dtype(model, dtype, all_rows(lambda batch: _packed_forward(model, batch)))
    return one_by_one, packed


def _packed_forward(model: nn.Module, batch: Batch) -> Tensor:
    positions = batch.position_ids[None] + first_position(layer_stack(model))
    with attention.segments(batch):
        return last_hidden(model, input_ids=batch.input_ids[None], position_ids=positions)[0]  # [T, D]


def _one_by_one_forward(model: nn.Module, batch: Batch) -> Tensor:
    rows = [batch.input_ids[None, a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
    return torch.cat([last_hidden(model, input_ids=ids)[0] for ids in rows])  # [T, D]


@torch.no_grad()
def _difference(model: Any, backbone: Backbone, reference: Backbone) -> float:
    """The largest difference of hidden states over the largest value, on four packed rows of random tokens.

    One row is longer than the attention window, where that is short enough; two rows share their first five tokens.
    """
    generator = torch.Generator().manual_seed(0)
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    longest = 11 if window > LONGEST_PROBE else window + 11
    ids = [torch.randint(0, config.vocab_size, (n,), generator=generator).tolist() for n in (longest, 7, 7)]
    ids.append(ids[0][:5] + ids[1][:3])
    batch = pack([{"input_ids": x, "labels": x} for x in ids]).to(next(model.parameters()).device)
    hidden, expected = backbone(batch).float(), reference(batch).float()
    return float((hidden - expected).abs().max() / expected.abs().max())


def make_lm_head(model: Any) -> LMHead:
    """The output head as a function of hidden states, with what the family does to its logits; of an encoder, none.

    Raises:
        ModelError: it does not give the model's own logits on a probe.
    """
    head = unchecked_lm_head(model)
    if architecture_of(model.config).kind == "decoder":
        _check_lm_head(model, head)
    return head


def unchecked_lm_head(model: Any) -> LMHead:
    """The same, without the probe."""
    kind = architecture_of(model.config).kind
    if kind == "encoder":
        return LMHead.missing()
    if kind == "encoder_decoder":
        return encoder_decoder.make_lm_head(model)
    config, layer = model.config.get_text_config(), model.get_output_embeddings
    scale = 1.0
    if getattr(config, "logits_scaling", None):  # Granite
        scale = 1.0 / config.logits_scaling
    elif getattr(config, "logit_scale", None):  # Cohere
        scale = config.logit_scale
    return LMHead(
        weight=lambda: whole_weight(layer()),
        num_frozen=lambda: num_frozen_rows(layer()),
        bias=lambda: getattr(layer(), "bias", None),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        kernels=kernels_for_logits,
        linear=linear_few_rows,
    )


@torch.no_grad()
def _check_lm_head(model: Any, head: LMHead) -> None:
    ids = torch.arange(1, 6, device=next(model.parameters()).device)[None]
    expected = model(input_ids=ids, use_cache=False).logits[0].float()
    logits = head.logits(last_hidden(model, input_ids=ids)[0])
    difference = float((logits - expected).abs().max() / expected.abs().max())
    if difference > LOGITS_TOLERANCE:
        raise ModelError(
            "base: the output head of {model} is not supported: its logits differ from hidden states times the output "
            "embedding by {difference:.0e}",
            model=type(model).__name__,
            difference=difference,
        )
