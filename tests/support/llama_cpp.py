"""Tiny models for llama.cpp: their tokenizers are made known to the table of pre-tokenizers."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from support.models import make_model, make_tokenizer
from weitiao.deploy.export.gguf import vocabulary

GEMMAS = ("gemma", "gemma2", "gemma3_text")


def make_sentencepiece_tokenizer() -> Any:
    """A BPE tokenizer as Gemma's: spaces are ▁, unknown characters are bytes, BOS goes before a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from support.models import WORDS

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=350, special_tokens=special, show_progress=False)
    raw.train_from_iterator([WORDS] * 4, trainer)
    spec = json.loads(raw.to_str())
    pieces = [x for x in spec["model"]["vocab"] if x not in special]
    order = [*special, *byte_tokens, *pieces]
    spec["model"]["vocab"] = {x: i for i, x in enumerate(order)}
    raw = Tokenizer.from_str(json.dumps(spec))
    raw.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=raw, **names, additional_special_tokens=["<start_of_turn>", "<end_of_turn>"]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    return tokenizer


def save_decoder(folder: Path, family: str, **changes: Any) -> Path:
    """A tiny decoder with the kind of tokenizer that its family has.

    Args:
        changes: of its config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer: Any = make_sentencepiece_tokenizer() if family in GEMMAS else make_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    model: Any = make_model(family)
    if changes or len(tokenizer) > model.config.vocab_size:
        plain = {**model.config.to_dict(), "vocab_size": max(320, len(tokenizer)), **changes}
        plain.pop("model_type")
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **plain)).eval()
        _shake(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _shake(model: Any) -> None:
    import torch

    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)


def make_known(monkeypatch: pytest.MonkeyPatch, place: Path, tokenizer: Any, name: str = "gpt-2") -> None:
    """Put a tokenizer into the table, under the name of the pre-tokenizer that it really has."""
    digest = sha256(str(list(tokenizer.encode(vocabulary.SPLIT_DIFFERENTLY))).encode()).hexdigest()
    table = place / "pre_tokenizers.json"
    table.write_text(json.dumps({digest: name}))
    monkeypatch.setattr(vocabulary, "PRE_TOKENIZERS", table)
