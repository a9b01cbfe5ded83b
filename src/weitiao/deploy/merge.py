"""Merge adapter weights into the base model: a plain model folder, reloaded and compared with the tuned model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weitiao.core.architecture import Architecture
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.processor import FeatureExtractor
from weitiao.core.trainable_model import TrainableModel

AUTO_CLASSES: dict[tuple[str, str], Any] = {
    ("decoder", "text"): AutoModelForCausalLM,
    ("encoder", "text"): AutoModel,
    ("encoder_decoder", "text"): AutoModelForSeq2SeqLM,
    ("encoder_decoder", "speech"): AutoModelForSpeechSeq2Seq,
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
PROBE = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过了懒狗。 def f(x): return x + 1"


@dataclass(frozen=True)
class MergeReport:
    """What was written, and how closely the reloaded model matches the tuned one on a probe text."""

    folder: Path
    gap: float
    """Largest difference of the outputs, relative to the largest output."""
    same_top_token: float
    """Fraction of positions whose most probable token is the same."""
    generative: bool = True
    """The outputs are logits; False: hidden states of an encoder."""
    form: Message = Message("a merged model")
    """What the folder holds, and why."""

    @property
    def message(self) -> Message:
        if not self.generative:
            return Message("hidden states differ by at most {gap:.1e} (relative)", gap=self.gap)
        return Message(
            "logits differ by at most {gap:.1e} (relative), {same:.0%} of the most probable tokens are the same",
            gap=self.gap,
            same=self.same_top_token,
        )


def merge(model: TrainableModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> MergeReport:
    """Merge, save with `save_pretrained`, load again with plain AutoModel and compare.

    Raises:
        ModelError: the method cannot be merged, the folder is not empty, or the reloaded model gives other outputs.
    """
    if model.attachment.merge is None:
        raise ModelError("this method cannot be merged; use the run folder with chat, generate or evaluate.")
    refuse_nonempty(folder)
    expected = probe_outputs(model.model, tokenizer, model.architecture)
    with torch.no_grad():
        model.attachment.merge()
    return write_model(model.model, model.architecture, tokenizer, folder, expected, model.processor.feature_extractor)


def refuse_nonempty(folder: Path) -> None:
    """A result needs a folder of its own.

    Raises:
        ModelError: there is something in it.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError("{folder} is not empty. Name a folder that does not exist yet.", folder=folder)


def write_model(
    model: nn.Module,
    architecture: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    expected: torch.Tensor,
    feature_extractor: FeatureExtractor | None = None,
) -> MergeReport:
    """Save a plain model, load it again with plain AutoModel and compare its outputs with the expected ones.

    Args:
        feature_extractor: of a speech model; saved with it.

    Raises:
        ModelError: the reloaded model gives other outputs.
    """
    assert isinstance(model, PreTrainedModel)
    dtype = next(model.parameters()).dtype
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if feature_extractor is not None:
        feature_extractor.save(folder)
    auto_class = AUTO_CLASSES[architecture.kind, architecture.modality]
    reloaded = auto_class.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    report = verify(folder, expected, probe_outputs(reloaded, tokenizer, architecture), dtype)
    return replace(report, generative=architecture.kind != "encoder")


def verify(folder: Path, expected: torch.Tensor, got: torch.Tensor, dtype: torch.dtype = torch.float32) -> MergeReport:
    """Compare the outputs of a written model with those of the tuned one.

    Raises:
        ModelError: they differ by more than the dtype's tolerance.
    """
    gap = float((got - expected).abs().max() / expected.abs().max())
    if not gap <= TOLERANCE.get(dtype, 5e-2):  # `not <=` catches NaN too
        raise ModelError(
            "the model in {folder} gives other outputs than the tuned one (gap {gap:.1e}): do not use it.",
            folder=folder,
            gap=gap,
        )
    return MergeReport(folder, gap, float((got.argmax(-1) == expected.argmax(-1)).float().mean()))


@torch.no_grad()
def probe_outputs(model: nn.Module, tokenizer: PreTrainedTokenizerBase, architecture: Architecture) -> torch.Tensor:
    """Logits [1, T, V] of a probe text, in fp32; of an encoder, hidden states [1, T, D]."""
    assert isinstance(model, PreTrainedModel)
    probe = torch.tensor([tokenizer(PROBE).input_ids], device=model.device)
    probe = probe[:, : getattr(model.config, "max_target_positions", None)]  # a Whisper decoder is short
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


def _random_features(model: PreTrainedModel) -> torch.Tensor:
    """[1, mels, 2 S]: random input features, the same on every call."""
    shape = (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    weight = next(model.parameters())
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
