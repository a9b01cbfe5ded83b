"""An adapter folder in PEFT's format, opened by the `peft` library on its base model."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from weitiao.core.errors import ModelError
from weitiao.deploy.verification.transformers_form import TransformersForm

CONFIG, TEMPLATE = "adapter_config.json", "chat_template.jinja"


def recognizes(source: str) -> bool:
    """Whether the source is a folder with an adapter."""
    return (Path(source) / CONFIG).is_file()


def open_form(source: str, base: Path) -> TransformersForm:
    """Open it in fp32 on the base model.

    Args:
        base: the folder of the Run's base model, whatever name the adapter has for it.

    Raises:
        ModelError: `peft` is not installed, or it cannot read the adapter.
    """
    try:
        import peft
    except ImportError:
        raise ModelError("{source}: to compare an adapter, install PEFT: pip install peft", source=source) from None
    folder = Path(source)
    is_seq2seq = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("task_type") == "SEQ_2_SEQ_LM"
    auto_class: Any = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    model: Any = auto_class.from_pretrained(base, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    if (folder / "tokenizer.json").is_file():  # with new tokens, whose embeddings the adapter has
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        model = peft.PeftModel.from_pretrained(model, source).eval()
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise ModelError("{source}: PEFT cannot open it: {reason}", source=source, reason=str(error)[:300]) from None
    if (folder / TEMPLATE).is_file():
        tokenizer.chat_template = (folder / TEMPLATE).read_text(encoding="utf-8")
    if (folder / "generation_config.json").is_file():
        model.base_model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return TransformersForm(model, tokenizer, "fp32")
