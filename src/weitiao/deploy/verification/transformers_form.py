"""A model that plain transformers opens, as a Form: merged folders, and adapters through PEFT."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

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
    def log_probs(self, ids: Sequence[int], start: int) -> Tensor:
        return answer_log_probs(self.model, ids, start)

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


def answer_log_probs(model: Any, ids: Sequence[int], start: int, virtual_tokens: Sequence[int] = ()) -> Tensor:
    """[A, V] fp32 on the CPU, by a transformers model's own forward pass: see `Form.log_probs`.

    Args:
        virtual_tokens: ids beyond the vocabulary that go before the prompt.
    """
    device, length = model.device, len(ids) - start
    if model.config.is_encoder_decoder:
        source, target = torch.tensor([[*virtual_tokens, *ids[: start - 1]]]), torch.tensor([list(ids[start - 1 : -1])])
        out = model(input_ids=source.to(device), decoder_input_ids=target.to(device), use_cache=False)
        return out.logits[0, -length:].float().log_softmax(-1).cpu()
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    keeps = "logits_to_keep" in inspect.signature(plain.forward).parameters
    tensor = torch.tensor([[*virtual_tokens, *ids[:-1]]], device=device)
    out = model(input_ids=tensor, use_cache=False, **({"logits_to_keep": length} if keeps else {}))
    return out.logits[0, -length:].float().log_softmax(-1).cpu()
