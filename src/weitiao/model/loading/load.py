"""A base model, loaded and made ready for a method: model, tokenizer, the way its body runs, its vocabulary head."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from weitiao.core.architecture import Architecture
from weitiao.core.batch import Batch, pack
from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision
from weitiao.core.hardware import limit_primitive_cache
from weitiao.core.lm_head import LMHead
from weitiao.core.registry import find_module, names
from weitiao.core.trainable_model import Backbone, TrainableModel
from weitiao.model.adapters.low_rank import LowRankLinear
from weitiao.model.adapters.module_structure import (
    architecture_of,
    first_position,
    last_hidden,
    stack_of,
)
from weitiao.model.backbone import encoder_decoder as two
from weitiao.model.backbone.decoder import Block, BlockBackbone
from weitiao.model.kernels import library
from weitiao.model.layers import attention
from weitiao.model.layers.dropout import Dropout
from weitiao.model.layers.kernel_check import largest_gap
from weitiao.model.layers.saved_tensors import computing_in
from weitiao.model.layers.swap import replace_modules
from weitiao.model.loading.weights import load_whole

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
TOLERANCE = {
    torch.float32: 1e-4,
    torch.bfloat16: 4e-2,
    torch.float16: 1e-2,
}  # of the largest value, our block against HF
LONGEST_PROBE = 256  # tokens
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

    model: nn.Module
    architecture: Architecture
    backbone: Backbone
    lm_head: LMHead | None
    """None: an encoder, which writes nothing."""
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
    choices = library.choose(device, dtype, largest_gap)
    with library.left_out():  # which are held to torch by themselves: here it is the block's form that is to be proven
        backbone, choice = choose_backbone(model, dtype)
    choices.append(choice)
    lm_head = None if architecture.kind == "encoder" else vocabulary_head(model)
    return Base(model, architecture, backbone, lm_head, choices, weights, folder)


def _load(kind: Any, folder: Path, config: Any, stored: dict[str, Any], how: str) -> tuple[Any, dict]:
    """The model and what is said of its loading."""
    usual = stored.keys() <= {"dtype", "local_files_only", "use_safetensors"}
    loaded = load_whole(kind, folder, config, stored["dtype"], how) if usual else None
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


def choose_backbone(model: nn.Module, dtype: torch.dtype) -> tuple[Backbone, Decision]:
    """The fastest way through the model that proves right: on a probe of packed rows it must give what transformers
    gives for each row alone.

    Our own block for this family; else transformers' forward on packed rows; else (a family that carries something
    from token to token past our attention) one row at a time.
    """
    if architecture_of(model.config).kind == "encoder_decoder":
        return two.choose_backbone(model, lambda run: in_dtype(model, dtype, whole(run)), TOLERANCE[dtype])
    family = model.config.model_type  # pyright: ignore
    alone = in_dtype(model, dtype, whole(lambda batch: _row_by_row(model, batch)))
    packed = in_dtype(model, dtype, whole(lambda batch: _transformers_body(model, batch)))
    why = f"no hand-written block for the family {family!r}"
    for name in names(Block):
        block = find_module(Block, name)
        if family not in block.FAMILIES:
            continue
        ours = BlockBackbone(block, model, dtype)
        gap = _gap(model, ours, alone)
        if gap <= TOLERANCE[dtype]:
            equal = "equal to" if gap == 0 else f"within {gap:.0e} of"
            reason = f"weitiao's {name} block, packed: on a probe {equal} transformers row by row"
            return ours, Decision("model.block", name, reason)
        why = f"the {name} block differs from transformers by {gap:.0e} on a probe, so it is not used"
    gap = _gap(model, packed, alone)
    if gap <= TOLERANCE[dtype]:
        equal = "equal to" if gap == 0 else f"within {gap:.0e} of"
        return packed, Decision("model.block", "transformers", f"{why}; packed rows are {equal} rows alone on a probe")
    reason = f"packed rows would see one another in this family (they differ by {gap:.0e} on a probe): slower, but right"
    return alone, Decision("model.block", "transformers, row by row", reason)


def use_reference_implementation(model: TrainableModel, dtype: torch.dtype) -> Decision:
    """From now on the model runs as transformers and autograd have it: nothing hand-written but the method's own layers,
    and those by torch's functions. Slower; what the fast way is held to."""
    if model.architecture.kind != "encoder_decoder":
        packed = in_dtype(model.model, dtype, whole(lambda batch: _transformers_body(model.model, batch)))
        alone = in_dtype(model.model, dtype, whole(lambda batch: _row_by_row(model.model, batch)))
        model.backbone = packed if _gap(model.model, packed, alone) <= TOLERANCE[dtype] else alone
    if model.lm_head is not None:
        model.lm_head = replace(model.lm_head, plain=True)
    for module in model.model.modules():
        if isinstance(module, (LowRankLinear, Dropout)):
            module.plain = True
    return Decision("model.block", "transformers", "train.implementation is plain")


def in_dtype(model: nn.Module, dtype: torch.dtype, run: Backbone) -> Backbone:
    """A body that computes in `dtype`."""

    def run_in_dtype(batch: Batch, rows: Tensor | None = None) -> Tensor:
        with computing_in(model, dtype):
            return run(batch, rows)

    return run_in_dtype


def whole(run: Callable[[Batch], Tensor]) -> Backbone:
    """Runs every token, whichever are asked for."""
    return lambda batch, rows=None: run(batch) if rows is None else run(batch)[rows]


def _transformers_body(model: nn.Module, batch: Batch) -> Tensor:
    positions = batch.position_ids[None] + first_position(stack_of(model))
    with attention.segments(batch):
        return last_hidden(model, input_ids=batch.input_ids[None], position_ids=positions)[0]  # [T, D]


def _row_by_row(model: nn.Module, batch: Batch) -> Tensor:
    """Each row alone, with transformers' plain forward: the slow truth."""
    rows = [batch.input_ids[None, a:b] for a, b in zip(batch.bounds, batch.bounds[1:])]
    return torch.cat([last_hidden(model, input_ids=ids)[0] for ids in rows])  # [T, D]


@torch.no_grad()
def _gap(model: nn.Module, one: Callable[[Batch], Tensor], other: Callable[[Batch], Tensor]) -> float:
    """Largest difference over largest value, on four packed rows of random tokens, of which two begin alike."""
    random = torch.Generator().manual_seed(0)
    config = model.config.get_text_config()  # pyright: ignore
    window = getattr(config, "sliding_window", None) or 0
    longest = 11 if window > LONGEST_PROBE else window + 11  # so that the window matters
    ids = [torch.randint(0, config.vocab_size, (n,), generator=random).tolist() for n in (longest, 7, 7)]
    ids.append(ids[0][:5] + ids[1][:3])
    batch = pack([{"input_ids": x, "labels": x} for x in ids]).to(next(model.parameters()).device)
    a, b = one(batch).float(), other(batch).float()
    return float((a - b).abs().max() / b.abs().max())


def vocabulary_head(model: Any) -> LMHead:
    """The output head as a function of hidden states, with what the family does to logits.

    Raises:
        ModelError: it does not give the model's own logits on a probe.
    """
    if architecture_of(model.config).kind == "encoder_decoder":
        return two.vocabulary_head(model)
    config = model.config.get_text_config()  # pyright: ignore
    layer = model.get_output_embeddings  # pyright: ignore
    scale = 1.0
    if getattr(config, "logits_scaling", None):
        scale = 1.0 / config.logits_scaling
    elif getattr(config, "logit_scale", None):
        scale = config.logit_scale
    head = LMHead(
        weight=lambda: layer().weight,
        bias=lambda: getattr(layer(), "bias", None),
        scale=scale,
        softcap=getattr(config, "final_logit_softcapping", None),
        kernels=library.for_words,
    )
    with torch.no_grad():
        ids = torch.arange(1, 6, device=next(model.parameters()).device)[None]
        wanted = model(input_ids=ids, use_cache=False).logits[0].float()
        inner = last_hidden(model, input_ids=ids)[0]
        gap = float((head.logits(inner) - wanted).abs().max() / wanted.abs().max())
    if gap > 2e-2:
        raise ModelError(
            f"base: the head of {type(model).__name__} does something that weitiao does not know (gap {gap:.0e})."
        )
    return head
