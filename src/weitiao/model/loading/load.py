"""Loads a base model: its architecture, tokenizer, generation settings and weights, and how its forward pass runs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from weitiao.core.architecture import Architecture
from weitiao.core.errors import InvalidValue, ModelError
from weitiao.core.finding import Decision
from weitiao.core.hardware import limit_primitive_cache
from weitiao.core.lm_head import LMHead
from weitiao.core.messages import Message
from weitiao.core.trainable_model import Backbone
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.backbone.choose import choose_backbone, make_lm_head, unchecked_backbone, unchecked_lm_head
from weitiao.model.kernels import library
from weitiao.model.layers import attention
from weitiao.model.layers.kernel_check import max_relative_error
from weitiao.model.layers.swap import replace_modules
from weitiao.model.loading.compressed import load_compressed
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
    """A loaded base model, before a method is attached."""

    model: PreTrainedModel
    architecture: Architecture
    backbone: Backbone
    lm_head: LMHead
    decisions: list[Decision]
    """How it runs, and why."""
    num_weights: int = 0
    """As loaded, before a method quantizes them."""
    folder: Path | None = None


def load_architecture(folder: Path) -> Architecture:
    """The architecture of the model in a folder, from its config.json.

    Raises:
        ModelError: the config cannot be read, or its family is unknown.
    """
    try:
        return architecture_of(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "base: {file} cannot be read: {reason}", file=folder / "config.json", reason=_reason(error)
        ) from None


def load_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Args:
        template: replaces its chat template.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError:
        raise ModelError(
            "base: the tokenizer in {folder} needs sentencepiece: pip install 'weitiao[seq2seq]'", folder=folder
        ) from None
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            "base: the tokenizer in {folder} cannot be read: {reason}", folder=folder, reason=_reason(error)
        ) from None
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def load_generation(folder: Path) -> GenerationConfig:
    """The model's own generation settings; older models have them in config.json.

    Raises:
        ModelError: they cannot be read.
    """
    in_own_file = (folder / GENERATION).exists()
    file = GENERATION if in_own_file else "config.json"
    options: dict[str, Any] = {} if in_own_file else {"_from_model_config": True}
    try:
        settings = GenerationConfig.from_pretrained(folder, config_file_name=file, local_files_only=True, **options)
        stop_ids = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        if not all(x is None or type(x) is int for x in stop_ids):  # a bool is an int, and is no token id
            raise InvalidValue("eos_token_id is {value}, which is not a token id", value=repr(settings.eos_token_id))
        return settings
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            "base: {file} cannot be read: {reason}. Download it again, or delete it."
            if in_own_file
            else "base: {file} cannot be read: {reason}. Download it again.",
            file=folder / file,
            reason=_reason(error),
        ) from None


def load_base(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    options: dict[str, Any] | None = None,
    prepare: Callable[[PreTrainedModel, torch.device], None] = lambda model, device: None,
) -> Base:
    """Load the weights and choose how the forward pass runs.

    Args:
        dtype: the compute dtype. Weights are stored in it too, unless the method's `options` name another one.
        options: extra arguments for `from_pretrained` (Method.load_options).
        prepare: called before the weights go to the device (Method.prepare).

    Raises:
        ModelError: the architecture is not supported, or weights are missing or damaged.
    """
    limit_primitive_cache()
    arguments = {"dtype": dtype, "local_files_only": True, "use_safetensors": True, **(options or {})}
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        architecture = architecture_of(config)
        load = partial(_load, AUTO_CLASSES[architecture.kind, architecture.modality], folder, config, arguments)
        try:
            model, info = load(attention.NAME)
        except ValueError:  # a family with its own attention (DeBERTa); choose_backbone tests whether rows can be packed
            model, info = load("eager")
    except (ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        raise ModelError("base: {folder} cannot be loaded: {reason}", folder=folder, reason=_reason(error)) from None
    _remove_pooler(model)
    replace_modules(model)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            "base: {folder} lacks {n:,} weights that its config requires, first {name}",
            folder=folder,
            n=len(missing),
            name=missing[0],
        )
    num_weights = sum(p.numel() for p in model.parameters())
    prepare(model, device)
    model.to(device).eval()
    decisions = library.check_kernels(device, dtype, max_relative_error)
    with library.kernels_disabled():  # kernels are checked above; this compares the block with transformers
        backbone, decision = choose_backbone(model, dtype)
    return Base(model, architecture, backbone, make_lm_head(model), [*decisions, decision], num_weights, folder)


def base_of_shapes(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    options: dict[str, Any],
    prepare: Callable[[PreTrainedModel, torch.device], None],
) -> Base:
    """A base model of fake tensors, by its config alone: for a trace of shapes (profiling/memory_tracker.py).

    Call it under torch's FakeTensorMode.
    """
    architecture = architecture_of(config)
    auto_class = AUTO_CLASSES[architecture.kind, architecture.modality]
    stored = options.get("dtype", dtype)
    try:
        model = auto_class.from_config(config, attn_implementation=attention.NAME, dtype=stored)
    except ValueError:  # a family with its own attention
        model = auto_class.from_config(config, attn_implementation="eager", dtype=stored)
    _remove_pooler(model)
    replace_modules(model)
    num_weights = sum(p.numel() for p in model.parameters())
    prepare(model, torch.device("cpu"))
    model.eval()
    return Base(model, architecture, unchecked_backbone(model, dtype), unchecked_lm_head(model), [], num_weights)


def _load(
    auto_class: Any, folder: Path, config: PreTrainedConfig, arguments: dict[str, Any], implementation: str
) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' loading info.

    Args:
        implementation: of attention.
    """
    is_usual = arguments.keys() <= {"dtype", "local_files_only", "use_safetensors"}
    loaded = None
    if is_usual:
        loaded = load_compressed(auto_class, folder, config, arguments["dtype"], implementation)
        loaded = loaded or load_in_chunks(auto_class, folder, config, arguments["dtype"], implementation)
    if loaded is None:
        return auto_class.from_pretrained(
            folder, config=config, output_loading_info=True, attn_implementation=implementation, **arguments
        )
    model: Any = loaded[0]
    if model.can_generate():
        model.generation_config = load_generation(folder)
    return loaded


def _remove_pooler(model: Any) -> None:
    """BERT's pooler serves next-sentence prediction only; objectives read the hidden states."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None


def _reason(error: Exception) -> Message | str:
    """Our own message, or the first line of a third party's."""
    if isinstance(error, InvalidValue):
        return error.message
    if "trust_remote_code" in str(error):
        return Message(
            "its family is not in transformers but in Python code beside the weights, which weitiao never runs; use a "
            "model whose family transformers has"
        )
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
