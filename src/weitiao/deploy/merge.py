"""Fold what was learnt into the base weights: a plain model folder, and the proof that it answers the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from weitiao.core.errors import ModelError
from weitiao.core.tunable import TunableModel

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Merged:
    """The proof: the largest difference of logits over the largest logit, on a probe, tuned against reloaded."""

    folder: Path
    gap: float
    same_choice: float
    """Share of positions whose most probable token is the same."""


def merge(model: TunableModel, tokenizer: Any, folder: Path) -> Merged:
    """Merge, save with `save_pretrained`, load again with plain AutoModel and compare.

    Raises:
        ModelError: the method cannot be merged, the folder is not empty, or the reloaded model answers differently.
    """
    if model.attachment.merge is None:
        words = "this method cannot be folded into the base weights; ask the run itself"
        raise ModelError(f"{words}: chat, generate and evaluate take its folder.")
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} is not empty. Name a folder that does not exist yet.")
    inner: Any = model.model
    dtype = next(inner.parameters()).dtype
    probe = _probe(tokenizer, inner)
    with model.evaluating(), torch.no_grad():
        wanted = inner(input_ids=probe.to(model.device), use_cache=False).logits.float().cpu()
        model.attachment.merge()
    inner.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    gap, same = _compare(again, probe, wanted)
    if gap > TOLERANCE.get(dtype, 5e-2):
        raise ModelError(
            f"the merged model in {folder} does not answer as the tuned one did (gap {gap:.1e}): do not use it."
        )
    return Merged(folder, gap, same)


def _probe(tokenizer: Any, model: nn.Module) -> torch.Tensor:
    words = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过了懒狗。 def f(x): return x + 1"
    return torch.tensor([tokenizer(words).input_ids])


@torch.no_grad()
def _compare(again: nn.Module, probe: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    got = again(input_ids=probe, use_cache=False).logits.float()
    gap = float((got - wanted).abs().max() / wanted.abs().max())
    return gap, float((got.argmax(-1) == wanted.argmax(-1)).float().mean())
