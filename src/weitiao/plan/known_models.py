"""Configs of common models, so that "7B on 24 GB?" is answered without a download."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig, PretrainedConfig

FILE = Path(__file__).with_name("model_configs.yaml")
VARIANTS = re.compile(r"[-_](instruct|chat|it|base|hf|pt)\b.*$")


def known_config(base: str) -> PretrainedConfig | None:
    """The config of a model by its hub id, with or without owner and variant; None: it is not among the known ones.

    >>> known_config("meta-llama/Llama-2-7b-chat-hf").num_hidden_layers
    32
    """
    entry = known_models().get(base.rpartition("/")[2].lower()) or known_models().get(model_name(base))
    if entry is None:
        return None
    values = {key: x for key, x in entry.items() if key not in ("parameters", "model_type")}
    return AutoConfig.for_model(entry["model_type"], **values)


def model_name(base: str) -> str:
    """The name under which a model is known.

    >>> model_name("Qwen/Qwen2.5-7B-Instruct"), model_name("modelscope:Qwen/Qwen3-8B")
    ('qwen2.5-7b', 'qwen3-8b')
    """
    name = base.removeprefix("modelscope:").rpartition("/")[2].lower().removeprefix("meta-")
    return VARIANTS.sub("", name)


@cache
def known_models() -> dict[str, dict[str, Any]]:
    """Name -> config values, and `parameters`: how many there are."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))
