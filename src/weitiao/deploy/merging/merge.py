"""Write a merged model: a folder that plain transformers opens, reloaded and compared with the tuned model."""

import re
from collections.abc import Callable, Sequence
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
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.files import share_weights
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.trainable_model import TrainableModel
from weitiao.deploy.merging.config_spellings import write_both_spellings
from weitiao.deploy.merging.generation_files import other_settings, set_stop_tokens
from weitiao.deploy.merging.predictions import HEAD_CLASSES, compare_predictions, outputs_of
from weitiao.deploy.merging.probe import PROBE, Probe, answers_alike, probe_of, probe_outputs
from weitiao.deploy.verification.verify import VerificationReport

AUTO_CLASSES: dict[tuple[str, str], Any] = {
    ("decoder", "text"): AutoModelForCausalLM,
    ("encoder", "text"): AutoModel,
    ("encoder_decoder", "text"): AutoModelForSeq2SeqLM,
    ("encoder_decoder", "speech"): AutoModelForSpeechSeq2Seq,
}
SHARD = "5GB"  # of one file, as vLLM and the hub expect it
TOLERANCE = 1e-4  # of outputs in fp32: merged against tuned, reloaded against stored; rounding to bf16 comes in between


@dataclass(frozen=True)
class MergeReport:
    """What was written, and how closely the reloaded model matches the tuned one on a probe text."""

    folder: Path
    gap: float
    """Largest difference of the outputs, relative to the largest output."""
    same_top_token: float
    """Fraction of positions whose most probable token is the same."""
    generative: bool = True
    """The outputs are logits of tokens; False: hidden states of an encoder, or the outputs of a head."""
    form: Message = Message("a merged model")
    """What the folder holds, and why."""
    dtype: str = "fp32"
    """What its weights are stored in."""
    megabytes: float = 0.0
    """Of its weights."""
    dtype_reason: Message = Message("")
    settings: tuple[tuple[str, Any], ...] = ()
    """Of the base's generation_config.json, which the folder keeps: what changes greedy answers."""
    same_answer: bool | None = None
    """Plain `generate` gives the tuned model's answer to a probe; None: not tried."""
    verification: VerificationReport | None = None
    """The comparison on the Run's own answers; None: a probe text was compared."""
    predictions: Message = Message("")
    """Of a model that predicts: the comparison on the Run's own rows."""

    @property
    def message(self) -> Message:
        if self.verification is not None:
            return self._verified(self.verification)
        if self.predictions:
            return self.predictions
        if not self.generative:
            return Message("hidden states differ by at most {gap:.1e} (relative)", gap=self.gap)
        fields = {"gap": self.gap, "same": self.same_top_token}
        if self.same_answer:
            return Message(
                "logits differ by at most {gap:.1e} (relative), {same:.0%} of the most probable tokens are the same, and "
                "plain generate ends its answer at the same token",
                **fields,
            )
        return Message(
            "logits differ by at most {gap:.1e} (relative), {same:.0%} of the most probable tokens are the same", **fields
        )

    def _verified(self, report: VerificationReport) -> Message:
        if not self.same_answer:
            return report.fidelity.message
        return Message("{fidelity}; plain generate ends its answer at the same token", fidelity=report.fidelity.message)

    @property
    def remark(self) -> Message | None:
        """What answers elsewhere may differ by."""
        if not self.settings:
            return None
        return Message(
            "generation_config.json keeps the base's {settings}: for the greedy answers that weitiao measures, give "
            "generate do_sample=False and repetition_penalty=1.0",
            settings=", ".join(f"{key} {value}" for key, value in self.settings),
        )

    @property
    def size(self) -> Message:
        """How the weights are stored, with the reason."""
        fields = {"dtype": self.dtype, "megabytes": self.megabytes}
        if not self.dtype_reason:
            return Message("{megabytes:,.1f} MB in {dtype}", **fields)
        return Message("{megabytes:,.1f} MB in {dtype} ({reason})", **fields, reason=self.dtype_reason)


@dataclass(frozen=True)
class Storage:
    """What merged weights are stored in, and why."""

    dtype: torch.dtype = torch.float32
    reason: Message = Message("")

    @property
    def name(self) -> str:
        return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}.get(
            self.dtype, str(self.dtype).removeprefix("torch.")
        )


def merge(
    model: TrainableModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    storage: Storage | None = None,
    prompt: Sequence[int] = (),
    ends_turns: bool = False,
) -> MergeReport:
    """Merge, save with `save_pretrained`, load again with plain AutoModel and compare.

    Args:
        storage: default: fp32.
        prompt: of the answer that is compared; (): the probe text.
        ends_turns: its answers end with the stop token of its chat template.

    Raises:
        ModelError: the method cannot be merged, or the reloaded model gives other outputs.
    """
    refuse_unmergeable(model)
    probe = probe_of(model, tokenizer, prompt)
    with torch.no_grad():
        model.attachment.merge()  # pyright: ignore[reportOptionalCall]
    return write_model(model, tokenizer, folder, probe, storage or Storage(), ends_turns)


def refuse_unmergeable(model: TrainableModel) -> None:
    """A method must have a merge.

    Raises:
        ModelError: it has none.
    """
    if model.attachment.merge is None:
        raise ModelError("this method cannot be merged; use the run folder with chat, generate or evaluate.")


def write_model(
    model: TrainableModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    probe: Probe,
    storage: Storage,
    ends_turns: bool = False,
) -> MergeReport:
    """Save a merged model, load it again with plain AutoModel, and compare its outputs and the end of its answer.

    Raises:
        ModelError: the reloaded model gives other outputs, or does not stop.
    """
    torch_model, architecture, processor = model.model, model.architecture, model.processor
    assert isinstance(torch_model, PreTrainedModel)
    if torch_model.can_generate():
        set_stop_tokens(torch_model, tokenizer, processor.stop_ids, architecture.kind == "decoder", ends_turns)
    reloaded, report = save_and_reload(
        torch_model,
        AUTO_CLASSES[architecture.kind, architecture.modality],
        folder,
        probe.outputs,
        lambda x: probe_outputs(x, tokenizer, architecture),
        storage,
    )
    tokenizer.save_pretrained(folder)
    if processor.feature_extractor is not None:
        processor.feature_extractor.save(folder)
    report = replace(report, generative=architecture.kind != "encoder")
    if torch_model.can_generate():
        report = replace(report, settings=tuple(other_settings(torch_model.generation_config).items()))
    if probe.answer is None:
        return report
    return replace(report, same_answer=answers_alike(reloaded, probe, processor, folder, architecture.kind))


def write_weights(
    model: TrainableModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    storage: Storage,
    ends_turns: bool = False,
    max_shard_size: str = SHARD,
) -> MergeReport:
    """Save a merged model with its tokenizer and settings; what it answers is not compared here.

    Args:
        max_shard_size: of one file of weights ("5GB"): what this needs in memory besides the model.
    """
    torch_model: Any = model.model
    settings: tuple[tuple[str, Any], ...] = ()
    if torch_model.can_generate():
        set_stop_tokens(torch_model, tokenizer, model.processor.stop_ids, model.architecture.kind == "decoder", ends_turns)
        settings = tuple(other_settings(torch_model.generation_config).items())
    store_in(torch_model, storage.dtype)
    save(torch_model, folder, max_shard_size)
    tokenizer.save_pretrained(folder)
    megabytes = sum(x.stat().st_size for x in folder.glob("*.safetensors")) / 1e6
    fields = {"dtype": storage.name, "megabytes": megabytes, "dtype_reason": storage.reason, "settings": settings}
    return MergeReport(folder, 0.0, 1.0, **fields)


def save(model: PreTrainedModel, folder: Path, max_shard_size: str = SHARD) -> None:
    """Config and weights, as plain transformers, and older readers of config.json, open them."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_both_spellings(folder)
    share_weights(folder)


def write_plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: PlainForm,
    heads: nn.ModuleDict,
    expected: torch.Tensor,
    ids: torch.Tensor,
    storage: Storage,
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> MergeReport:
    """Save a model in the form that other libraries know, load it again with plain transformers and compare.

    Args:
        model: of transformers' class for the form.
        expected: [1, T, C]: the outputs of the tuned model for the ids [1, T] of the probe text.
        rows: of the Run: ids [1, T], and the outputs [1, T, C] of the tuned model before it was merged.

    Raises:
        ModelError: the reloaded model gives other outputs, predicts otherwise, or its tokenizer gives other ids.
    """

    def outputs(model: Any, ids: torch.Tensor = ids) -> torch.Tensor:
        with torch.no_grad():
            return outputs_of(model(input_ids=ids.to(model.device)), form, *form.linear(heads))

    reloaded, report = save_and_reload(model, HEAD_CLASSES[form.task], folder, expected, outputs, storage)
    if rows:
        actual = [outputs(reloaded, row) for row, _ in rows]
        predictions = compare_predictions(form, [x for _, x in rows], actual, folder, storage.dtype)
        predictions.check()
        report = replace(report, predictions=predictions.message)
    tokenizer.save_pretrained(folder)
    same_ids = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)(PROBE).input_ids[
        : ids.shape[1]
    ]
    if list(same_ids) != ids[0].tolist():
        raise ModelError("the tokenizer in {folder} gives other ids than in training: do not use it.", folder=folder)
    return report


def save_and_reload(
    model: PreTrainedModel,
    auto_class: Any,
    folder: Path,
    expected: torch.Tensor,
    outputs: Callable[[PreTrainedModel], torch.Tensor],
    storage: Storage,
) -> tuple[Any, MergeReport]:
    """(the model that plain transformers loads from what was written, in fp32; how it compares with the tuned one).

    Args:
        model: merged, in fp32; afterwards rounded to what it is stored in.
        expected: the tuned model's outputs.
        outputs: of a model.

    Raises:
        ModelError: merging changed the outputs, or the file gives others than what was stored.
    """
    check_outputs(folder, expected, outputs(model))
    store_in(model, storage.dtype)
    save(model, folder)
    store_in(model, torch.float32)
    reloaded = auto_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    got = outputs(reloaded)
    check_outputs(folder, outputs(model), got)
    return reloaded, report_of(folder, expected, got, storage, generative=False)


def check_shard_size(size: str) -> None:
    """Whether it is a size as transformers reads it.

    Raises:
        RecipeError: it is not.
    """
    if re.fullmatch(r"[1-9]\d*(KB|MB|GB|KiB|MiB|GiB)", size) is None:
        raise RecipeError("max_shard_size: {size} is no size; write 500MB or 5GB", size=size)


def store_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the dtype of all weights; buffers, such as rotary frequencies, are computed and not stored."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)


def check_outputs(folder: Path, expected: torch.Tensor, got: torch.Tensor) -> float:
    """The largest difference of two models' outputs, relative to the largest output.

    Raises:
        ModelError: it is more than rounding in fp32.
    """
    gap = float((got - expected).abs().max() / expected.abs().max())
    if not gap <= TOLERANCE:  # `not <=` catches NaN too
        raise ModelError(
            "the model in {folder} gives other outputs than the tuned one (gap {gap:.1e}): do not use it.",
            folder=folder,
            gap=gap,
        )
    return gap


def report_of(
    folder: Path, expected: torch.Tensor, got: torch.Tensor, storage: Storage, generative: bool = True
) -> MergeReport:
    """How a written model compares with the tuned one, rounding included."""
    gap = float((got - expected).abs().max() / expected.abs().max())
    same = float((got.argmax(-1) == expected.argmax(-1)).float().mean())
    megabytes = sum(x.stat().st_size for x in folder.rglob("*.safetensors")) / 1e6
    return MergeReport(folder, gap, same, generative, dtype=storage.name, megabytes=megabytes, dtype_reason=storage.reason)
