"""A base model, loaded and made ready for a method: model, tokenizer, the way its body runs, its vocabulary head."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from weitiao.core.architecture import Architecture
from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision
from weitiao.core.hardware import limit_primitive_cache
from weitiao.core.lm_head import LMHead
from weitiao.core.trainable_model import Backbone
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.backbone.choose import choose_backbone, make_lm_head
from weitiao.model.kernels import library
from weitiao.model.layers import attention
from weitiao.model.layers.kernel_check import max_relative_error
from weitiao.model.layers.swap import replace_modules
from weitiao.model.loading.weights import load_in_chunks

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
GENERATION = "generation_config.json"
AUTO_CLASSES: dict[tuple[str, str], Any] = {
    ("decoder", "text"): AutoModelForCausalLM,
    ("encoder", "text"): AutoModel,
    ("encoder_decoder", "text"): AutoModelForSeq2SeqLM,
    ("encoder_decoder", "speech"): AutoModelForSpeechSeq2Seq,
}


@dataclass
class Base:
    """A loaded base model."""

    model: PreTrainedModel
    architecture: Architecture
    backbone: Backbone
    lm_head: LMHead
    choices: list[Decision]
    """How it was decided to run it."""
    weights: int = 0
    """How many there are, however they are stored."""
    folder: Path | None = None
    """Where they lie."""


def load_architecture(folder: Path) -> Architecture:
    """What the model in a folder is, from its config.json.

    Raises:
        ModelError: the config cannot be read, or its family is unknown.
    """
    try:
        return architecture_of(AutoConfig.from_pretrained(folder, local_files_only=True))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "base: {file} cannot be read: {reason}",
            file=folder / "config.json",
            reason=str(error).strip().splitlines()[0][:200],
        ) from None


def load_tokenizer(folder: Path, template: str | None = None) -> Any:
    """The model's tokenizer; `template` replaces its chat template.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"base: the tokenizer in {folder} cannot be read: {str(error).splitlines()[0]}") from None
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def load_generation(folder: Path) -> GenerationConfig:
    """How the model writes where nothing else is said; older models have it among all their other settings.

    Raises:
        ModelError: it cannot be read.
    """
    known: dict[str, Any] = {}
    file = GENERATION
    if not (folder / file).exists():
        file, known = "config.json", {"_from_model_config": True}
    try:
        settings = GenerationConfig.from_pretrained(folder, config_file_name=file, local_files_only=True, **known)
        stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        if not all(x is None or type(x) is int for x in stops):
            raise ValueError(f"eos_token_id is {settings.eos_token_id!r}, which is no token")
        return settings
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        words = f"base: {folder / file} cannot be read ({str(error).splitlines()[0]}). Fetch it anew"
        raise ModelError(words + (", or delete it." if file == GENERATION else ".")) from None


def load_base(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    options: dict[str, Any] | None = None,
    prepare: Callable[[nn.Module, torch.device], None] = lambda model, device: None,
) -> Base:
    """Load the weights and decide how they run.

    Args:
        dtype: what is computed in. Weights are stored in it too, unless the method's `options` say otherwise.
        prepare: the method's, before the weights go to the device.

    Raises:
        ModelError: the architecture is unknown or neither a causal language model nor an encoder, or weights are missing.
    """
    limit_primitive_cache()
    stored = {"dtype": dtype, "local_files_only": True, "use_safetensors": True, **(options or {})}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        architecture = architecture_of(config)
        load = partial(_load, AUTO_CLASSES[architecture.kind, architecture.modality], folder, config, stored)
        try:
            loaded = load(attention.NAME)
        except ValueError:  # a family with an attention of its own (DeBERTa); whether rows keep apart is probed
            loaded = load("eager")
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ModelError(f"base: {folder} cannot be loaded as a language model or an encoder: {first}") from None
    model, info = loaded
    without_pooler(model)
    replace_modules(model)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(f"base: {folder} lacks {len(missing)} weights that its config asks for, first {missing[0]}.")
    weights = sum(p.numel() for p in model.parameters())
    prepare(model, device)
    model.to(device).eval()
    choices = library.check_kernels(device, dtype, max_relative_error)
    with library.kernels_disabled():  # kernels are checked above; this compares the block with transformers
        backbone, choice = choose_backbone(model, dtype)
    choices.append(choice)
    return Base(model, architecture, backbone, make_lm_head(model), choices, weights, folder)


def _load(kind: Any, folder: Path, config: Any, stored: dict[str, Any], how: str) -> tuple[Any, dict]:
    """The model and what is said of its loading."""
    usual = stored.keys() <= {"dtype", "local_files_only", "use_safetensors"}
    loaded = load_in_chunks(kind, folder, config, stored["dtype"], how) if usual else None
    if loaded is None:
        return kind.from_pretrained(folder, config=config, output_loading_info=True, attn_implementation=how, **stored)
    model: Any = loaded[0]
    if model.can_generate():
        model.generation_config = load_generation(folder)
    return loaded


def without_pooler(model: Any) -> None:
    """BERT's pooler serves the next-sentence task alone: objectives read the hidden states, so it is left out."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
