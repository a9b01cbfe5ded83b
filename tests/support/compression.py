"""Finished Runs on tiny models whose layers can be divided into groups of 32."""

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from rich.console import Console

from support.models import make_tokenizer, make_wordpiece_tokenizer
from support.rows import write_jsonl
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.pipeline import train as pipeline


def save_wide_model(folder: Path, family: str = "llama") -> Path:
    """A tiny model of width 64 with its tokenizer."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 256}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 2}
    decoder = {"num_key_value_heads": 2, "head_dim": 16, **ends} if family != "bert" else {}
    config = AutoConfig.for_model(family, **sizes, **decoder)
    torch.manual_seed(0)
    model = (AutoModel if family == "bert" else AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.save_pretrained(folder)
    (make_wordpiece_tokenizer() if family == "bert" else make_tokenizer()).save_pretrained(folder)
    return folder


@cache
def wide_run(family: str = "llama") -> str:
    """The folder of a finished Run on such a model: chats of a decoder, two classes of an encoder."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    classes = [{"text": f"the quick fox number {i}", "label": ("odd", "even")[i % 2]} for i in range(48)]
    chats = [{"prompt": f"what time is it {i}", "response": ("the lazy dog", "seven wizards")[i % 2]} for i in range(48)]
    data = write_jsonl(place / "rows.jsonl", classes if family == "bert" else chats)
    shape = {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32", "evaluate_every": 0}
    plain = {"base": str(save_wide_model(place / "base", family)), "data": str(data), "validation": 0.25, "train": shape}
    plain |= {"method": {"name": "lora", "rank": 4}, "objective": "classification" if family == "bert" else "sft"}
    plain |= {"evaluate": {"samples": 0, "max_new_tokens": 4}, "out": str(place / "run")}
    with torch.random.fork_rng():
        return str(pipeline.train(make_recipe(plain), Reporter(Console(quiet=True))).folder)


def digests(folder: Path | str) -> dict[str, str]:
    """The sha256 of every file in a folder."""
    files = (x for x in sorted(Path(folder).rglob("*")) if x.is_file())
    return {str(x.relative_to(folder)): hashlib.sha256(x.read_bytes()).hexdigest() for x in files}
