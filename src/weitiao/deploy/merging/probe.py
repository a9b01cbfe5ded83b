"""A probe: a text and a prompt whose outputs and greedy answer the tuned model and what was written are compared on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weitiao.core.architecture import Architecture
from weitiao.core.errors import ModelError
from weitiao.core.generation import generate
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.deploy.merging.generation_files import GREEDY

PROBE = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过了懒狗。 def f(x): return x + 1"
MAX_NEW_TOKENS = 48  # of the answer to a probe


@dataclass(frozen=True)
class Probe:
    """What the tuned model does with a probe, to be compared with what was written."""

    outputs: torch.Tensor
    """As `probe_outputs`."""
    prompt: Sequence[int] = ()
    answer: Sequence[int] | None = None
    """The greedy answer to the prompt, without its stop token; None: the model does not generate."""


def probe_of(model: TrainableModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int] = ()) -> Probe:
    """Outputs and a greedy answer of the tuned model."""
    assert isinstance(model.model, PreTrainedModel)
    outputs = probe_outputs(model.model, tokenizer, model.architecture)
    if model.architecture.kind == "encoder" or model.architecture.modality == "speech" or not model.processor.stop_ids:
        return Probe(outputs)
    prompt = prompt or _probe_ids(model.model, tokenizer)[0].tolist()
    return Probe(outputs, prompt, generate(model, [prompt], MAX_NEW_TOKENS)[0])


@torch.no_grad()
def probe_outputs(model: nn.Module, tokenizer: PreTrainedTokenizerBase, architecture: Architecture) -> torch.Tensor:
    """Logits [1, T, V] of a probe text, in fp32; of an encoder, hidden states [1, T, D]."""
    assert isinstance(model, PreTrainedModel)
    probe = _probe_ids(model, tokenizer)
    was_training = model.training
    model.eval()
    if architecture.kind == "encoder":
        outputs = model(input_ids=probe).last_hidden_state.float().cpu()
    else:
        inputs = {"input_features": _random_features(model)} if architecture.modality == "speech" else {"input_ids": probe}
        if architecture.kind == "encoder_decoder":
            inputs["decoder_input_ids"] = probe
        outputs = model(**inputs, use_cache=False).logits.float().cpu()
    model.train(was_training)
    return outputs


@torch.no_grad()
def answers_alike(model: Any, probe: Probe, processor: Processor, folder: Path, kind: str = "decoder") -> bool:
    """Whether plain `generate` gives the tuned model's answer to the probe.

    Raises:
        ModelError: it goes on after a stop token.
    """
    prompt = torch.tensor([list(probe.prompt)], device=model.device)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=MAX_NEW_TOKENS, **GREEDY)
    ids: list[int] = out[0, 1 if kind == "encoder_decoder" else prompt.shape[1] :].tolist()
    ends = [i for i, token in enumerate(ids) if token in processor.stop_ids]
    if ends and ends[0] < len(ids) - 1:
        raise ModelError(
            "the model in {folder} does not stop: plain generate goes on after token {token}. Do not use it.",
            folder=folder,
            token=ids[ends[0]],
        )
    return ids[: ends[0] if ends else None] == list(probe.answer or ())


def _probe_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """[1, T]"""
    probe = torch.tensor([tokenizer(PROBE).input_ids], device=model.device)
    return probe[:, : getattr(model.config, "max_target_positions", None)]  # a Whisper decoder is short


def _random_features(model: PreTrainedModel) -> torch.Tensor:
    """[1, mels, 2 S]: random input features, the same on every call."""
    shape = (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    weight = next(model.parameters())
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
