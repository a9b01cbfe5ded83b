"""Write a merged model: a folder that plain transformers opens, reloaded and compared with the tuned model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from weitiao.core.architecture import Architecture
from weitiao.core.errors import ModelError
from weitiao.core.files import share_weights
from weitiao.core.generation import generate
from weitiao.core.messages import Message
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.deploy.generation_files import GREEDY, other_settings, set_stop_tokens

AUTO_CLASSES: dict[tuple[str, str], Any] = {
    ("decoder", "text"): AutoModelForCausalLM,
    ("encoder", "text"): AutoModel,
    ("encoder_decoder", "text"): AutoModelForSeq2SeqLM,
    ("encoder_decoder", "speech"): AutoModelForSpeechSeq2Seq,
}
HEAD_CLASSES: dict[str, Any] = {
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "masked_lm": AutoModelForMaskedLM,
    "scores": AutoModel,
    "pair_scores": AutoModel,
    "embedding": AutoModel,
}
TOLERANCE = 1e-4  # of outputs in fp32: merged against tuned, reloaded against stored; rounding to bf16 comes in between
PROBE = "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过了懒狗。 def f(x): return x + 1"
MAX_NEW_TOKENS = 48  # of the answer to a probe


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

    @property
    def message(self) -> Message:
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
class Probe:
    """What the tuned model does with a probe, to be compared with what was written."""

    outputs: torch.Tensor
    """As `probe_outputs`."""
    prompt: Sequence[int] = ()
    answer: Sequence[int] | None = None
    """The greedy answer to the prompt, without its stop token; None: the model does not generate."""


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
        ModelError: the method cannot be merged, the folder is not empty, or the reloaded model gives other outputs.
    """
    refuse_unmergeable(model)
    refuse_nonempty(folder)
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


def refuse_nonempty(folder: Path) -> None:
    """A result needs a folder of its own.

    Raises:
        ModelError: there is something in it.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError("{folder} is not empty. Name a folder that does not exist yet.", folder=folder)


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


def write_plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    form: PlainForm,
    heads: nn.ModuleDict,
    expected: torch.Tensor,
    ids: torch.Tensor,
    storage: Storage,
) -> MergeReport:
    """Save a model in the form that other libraries know, load it again with plain transformers and compare.

    Args:
        model: of transformers' class for the form.
        expected: [1, T, C]: the outputs of the tuned model for the ids [1, T] of the probe text.

    Raises:
        ModelError: the reloaded model gives other outputs, or its tokenizer other ids.
    """

    def outputs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            out = model(input_ids=ids.to(model.device))
        if form.task == "question_answering":
            return torch.stack([out.start_logits, out.end_logits], -1).cpu()
        if form.pooling is None:
            return out.logits.cpu()
        weight, bias = form.linear(heads)
        hidden = out.last_hidden_state
        return (hidden if weight is None else nn.functional.linear(hidden, weight, bias)).cpu()

    _, report = save_and_reload(model, HEAD_CLASSES[form.task], folder, expected, outputs, storage)
    tokenizer.save_pretrained(folder)
    same_ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(PROBE).input_ids[: ids.shape[1]]
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
    model.save_pretrained(folder)
    share_weights(folder)
    store_in(model, torch.float32)
    reloaded = auto_class.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    got = outputs(reloaded)
    check_outputs(folder, outputs(model), got)
    return reloaded, report_of(folder, expected, got, storage, generative=False)


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


# -- probes -----------------------------------------------------------------------------------------------------------


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
