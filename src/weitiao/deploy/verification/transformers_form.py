"""A model that plain transformers opens, as a Form: merged folders, and adapters through PEFT."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from weitiao.deploy.verification.fidelity import AnswerRow

KINDS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class TransformersForm:
    """A model that `AutoModel...from_pretrained` loads."""

    def __init__(self, model: Any, tokenizer: Any, kind: str) -> None:
        self.model, self.tokenizer, self.kind = model, tokenizer, kind
        stops = model.generation_config.eos_token_id
        self.stop_ids: tuple[int, ...] = () if stops is None else tuple(stops if isinstance(stops, list) else [stops])

    @classmethod
    def open(cls, folder: Path) -> "TransformersForm":
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        options = {"local_files_only": True, "use_safetensors": True}
        model = auto_class.from_pretrained(folder, dtype="auto", **options).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        dtype = next(model.parameters()).dtype
        return cls(model, tokenizer, KINDS.get(dtype, str(dtype).removeprefix("torch.")))

    @torch.no_grad()
    def log_probs(self, rows: Sequence[AnswerRow]) -> list[Tensor]:
        return answer_log_probs(self.model, rows)

    def template_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> list[int] | None:
        return render_ids(self.tokenizer, messages, tools)

    def close(self) -> None:
        self.model = None


def render_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> list[int] | None:
    """A prompt by a tokenizer's own chat template; None: it has none."""
    if not tokenizer.chat_template:
        return None
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    return list(tokenizer.apply_chat_template(list(messages), tools=tools, **options))


def answer_log_probs(model: Any, rows: Sequence[AnswerRow], virtual_tokens: Sequence[int] = ()) -> list[Tensor]:
    """[A, V] of each row, fp32 on the CPU, by transformers' own forward pass over all rows at once: see `LogProbs`.

    Rows are padded on the right, where a decoder's earlier tokens do not see it.

    Args:
        virtual_tokens: ids beyond the vocabulary that go before the prompt.
    """
    device = model.device
    if model.config.is_encoder_decoder:
        source, mask = padded([[*virtual_tokens, *x.prompt_ids[:-1]] for x in rows], device)
        starts = [0] * len(rows)
        target, _ = padded([x.ids[len(x.prompt_ids) - 1 : -1] for x in rows], device)
        out = model(input_ids=source, attention_mask=mask, decoder_input_ids=target, use_cache=False)
    else:
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        ids, _ = padded([[*virtual_tokens, *x.ids[:-1]] for x in rows], device)
        starts = [len(virtual_tokens) + len(x.prompt_ids) - 1 for x in rows]
        kept: dict[str, Tensor] = {}
        if "logits_to_keep" in inspect.signature(plain.forward).parameters:
            kept = {"logits_to_keep": torch.arange(min(starts), ids.shape[1], device=device)}
            starts = [x - min(starts) for x in starts]
        out = model(input_ids=ids, use_cache=False, **kept)
    answers = [out.logits[i, start : start + len(x.answer_ids)] for i, (start, x) in enumerate(zip(starts, rows))]
    return [x.float().log_softmax(-1).cpu() for x in answers]


def padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """(ids [B, T], padded with zeros on the right; a mask that is 1 where a row has a token)."""
    tensors = [torch.tensor(x, dtype=torch.long) for x in rows]
    ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(x) for x in tensors], batch_first=True)
    return ids.to(device), mask.to(device)
