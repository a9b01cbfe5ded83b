"""Fold what was learnt into the base weights: a plain model folder, and the proof that it answers the same."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from weitiao.core.architecture import Architecture
from weitiao.core.errors import ModelError
from weitiao.core.processor import FeatureExtractor
from weitiao.core.trainable_model import TrainableModel

AUTO_CLASSES: dict[tuple[str, str], Any] = {
    ("decoder", "text"): AutoModelForCausalLM,
    ("encoder", "text"): AutoModel,
    ("encoder_decoder", "text"): AutoModelForSeq2SeqLM,
    ("encoder_decoder", "speech"): AutoModelForSpeechSeq2Seq,
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Merged:
    """The proof: the largest difference of logits over the largest logit, on a probe, tuned against reloaded; of an
    encoder, of its hidden states."""

    folder: Path
    gap: float
    same_choice: float
    """Share of positions whose most probable token is the same."""
    generative: bool = True

    @property
    def message(self) -> str:
        if not self.generative:
            return f"its hidden states differ by {self.gap:.1e} of the largest"
        same = f"{100 * self.same_choice:.0f} % of the most probable tokens are the same"
        return f"its logits differ by {self.gap:.1e} of the largest, and {same}"


def merge(model: TrainableModel, tokenizer: Any, folder: Path) -> Merged:
    """Merge, save with `save_pretrained`, load again with plain AutoModel and compare.

    Raises:
        ModelError: the method cannot be merged, the folder is not empty, or the reloaded model answers differently.
    """
    if model.attachment.merge is None:
        words = "this method cannot be folded into the base weights; ask the run itself"
        raise ModelError(f"{words}: chat, generate and evaluate take its folder.")
    refuse_full(folder)
    wanted = answers(model.model, tokenizer, model.architecture)
    with torch.no_grad():
        model.attachment.merge()
    return write_model(model.model, model.architecture, tokenizer, folder, wanted, model.processor.feature_extractor)


def refuse_full(folder: Path) -> None:
    """A result goes into a folder of its own.

    Raises:
        ModelError: there is something in it.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError(f"{folder} is not empty. Name a folder that does not exist yet.")


def write_model(
    model: Any,
    architecture: Architecture,
    tokenizer: Any,
    folder: Path,
    wanted: torch.Tensor,
    feature_extractor: FeatureExtractor | None = None,
) -> Merged:
    """Save a plain model, load it again with plain AutoModel and compare with the logits that were wanted.

    Args:
        feature_extractor: of a speech model; saved next to it.

    Raises:
        ModelError: the reloaded model answers differently.
    """
    dtype = next(model.parameters()).dtype
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if feature_extractor is not None:
        feature_extractor.save(folder)
    again = AUTO_CLASSES[architecture.kind, architecture.modality].from_pretrained(
        folder, dtype=dtype, local_files_only=True
    )
    merged = verify(folder, wanted, answers(again.eval(), tokenizer, architecture), dtype)
    return replace(merged, generative=architecture.kind != "encoder")


def verify(folder: Path, wanted: torch.Tensor, got: torch.Tensor, dtype: torch.dtype = torch.float32) -> Merged:
    """What was written answers as it should.

    Raises:
        ModelError: it does not.
    """
    gap = float((got - wanted).abs().max() / wanted.abs().max())
    if not gap <= TOLERANCE.get(dtype, 5e-2):  # NaN too
        raise ModelError(f"the model in {folder} does not answer as the tuned one did (gap {gap:.1e}): do not use it.")
    return Merged(folder, gap, float((got.argmax(-1) == wanted.argmax(-1)).float().mean()))


@torch.no_grad()
def answers(model: nn.Module, tokenizer: Any, architecture: Architecture) -> torch.Tensor:
    """Logits [1, T, V] on a probe, in fp32; of an encoder, hidden states [1, T, D]."""
    words = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过了懒狗。 def f(x): return x + 1"
    probe = torch.tensor([tokenizer(words).input_ids], device=next(model.parameters()).device)
    probe = probe[:, : getattr(model.config, "max_target_positions", None)]  # of a Whisper
    was = model.training
    if architecture.kind == "encoder":
        found = model.eval()(input_ids=probe).last_hidden_state.float().cpu()
    else:
        given = {"input_features": _noise(model)} if architecture.modality == "speech" else {"input_ids": probe}
        more = {"decoder_input_ids": probe} if architecture.kind == "encoder_decoder" else {}
        found = model.eval()(**given, use_cache=False, **more).logits.float().cpu()
    model.train(was)
    return found


def _noise(model: Any) -> torch.Tensor:
    """[1, mels, 2 S]: features of nothing in particular, the same each time."""
    shape = (1, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    weight = next(model.parameters())
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
