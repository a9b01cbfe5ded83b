"""One side of one point of bench/growth.py: a Llama of random weights, LoRA, and weitiao's own loop on made-up rows.

It runs in a process that bench/growth.py forks for it, and takes a step whenever it is told to. All but reading, encoding
and loading is weitiao's pipeline: attaching, what `auto` comes to, the packed batches, the loop with guard and journal.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from growth_series import ENGINES, RANK, Point
from memory import memory_mb
from methods_weitiao import Over, RotaryTables
from weitiao.core.architecture import Architecture
from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.hardware import device
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_file import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.layers import attention
from weitiao.model.loading.load import Base, choose_backbone, use_reference_implementation, vocabulary_head
from weitiao.pipeline.train import BaseAssets, Prepared, batch, copy_sources_into
from weitiao.pipeline.trained import attach
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.loop import train
from weitiao.train.settings import make_optimizer
from weitiao.train.signals import Stop

ENDLESS = 1_000_000  # steps the recipe names; the bench stops far earlier
NO_TOKENIZER: Any = SimpleNamespace(text=list, stop_ids=(0,))


class MadeUpRows:
    """Random token ids, all rows equally long; the last `share` per cent of each are learnt."""

    fingerprint = "made up"

    def __init__(self, point: Point, many: int) -> None:
        self.point, self.lengths = point, np.full(many, point.length)
        self.source, self.tasks = np.zeros(many, np.int64), []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Row:
        ids = np.random.default_rng((1, i)).integers(0, self.point.vocabulary, self.point.length + 1)
        labels = ids[1:].copy()
        labels[: self.point.length - max(1, round(self.point.length * self.point.share / 100))] = IGNORE
        return {"input_ids": ids[:-1], "labels": labels}  # pyright: ignore[reportReturnType]


@dataclass
class History:
    """What a side says and hears. A bench that is gone ends it, too."""

    line: Connection
    bench: int
    """The process id."""

    def say(self, **facts: Any) -> None:
        self.line.send({"busy": time.process_time(), **facts})

    def my_turn(self) -> bool:
        while not self.line.poll(0.5):
            if os.getppid() != self.bench:
                raise SystemExit("The bench is gone.")
        return self.line.recv() == "go"


def recipe_for(point: Point, engine: str, precision: str, threads: int, out: Path) -> Recipe:
    """As `weitiao train` would read it; base and data are not opened."""
    return make_recipe(
        {
            "base": "random",
            "data": "made_up.jsonl",
            "validation": 0,
            "method": {"name": "lora", "rank": RANK},
            "objective": "sft",
            "train": {
                "batch_tokens": max(point.batch, point.length),
                "micro_batch_tokens": point.at_once,
                "steps": ENDLESS,
                "lr_schedule": "constant",
                "warmup_ratio": 0,
                "precision": precision,
                "implementation": ENGINES[engine],
                "evaluate_every": 0,
                "save_every": 0,
                "threads": threads,
            },
            "evaluate": {"metrics": ["loss"], "samples": 0},
            "out": str(out),
            "seed": 0,
        }
    )


def make_base(point: Point, dtype: torch.dtype) -> Base:
    """The model in memory, and the way through it that weitiao chooses."""
    shape = point.shape
    config = LlamaConfig(
        vocab_size=point.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=max(8192, point.length),
        tie_word_embeddings=True,
    )
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME).eval()
    model.to(device())
    body, choice = choose_backbone(model, dtype)
    return Base(
        model,
        architecture_of(model.config),
        body,
        vocabulary_head(model),
        [choice],
        sum(p.numel() for p in model.parameters()),
    )


def make_tunable(point: Point, recipe: Recipe, dtype: torch.dtype) -> tuple[TrainableModel, str]:
    """With its method; and whose layers run."""
    base = make_base(point, dtype)
    model = attach(base, recipe.method, recipe.objective, NO_TOKENIZER)
    (chosen,) = base.choices
    return model, (use_reference_implementation(model, dtype) if recipe.train.implementation == "plain" else chosen).value


def memory_since(before: float) -> dict[str, float]:
    """The peak: of the process, or on a GPU of what torch held there."""
    peak = torch.cuda.max_memory_allocated() / 2**20 if device().type == "cuda" else memory_mb("VmHWM")
    return {"before_model_mb": before, "peak_mb": peak}


def play(told: History, point: Point, engine: str, precision: str, threads: int, steps: int) -> None:
    """Step 0 is one micro-batch, the warm-up; then as many steps as are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(point, engine, precision, threads, Path(folder) / "run")
        run, machines, reporter = Run.create(recipe), Distributed(device()), Reporter(Console(quiet=True))
        _, dtype = copy_sources_into(recipe, run, reporter)
        rows: Any = MadeUpRows(point, (steps + 1) * max(1, point.batch // point.length))
        found = Prepared(recipe.objective, SimpleNamespace(rows=rows), None, None, [])  # pyright: ignore[reportArgumentType]
        tokens = BaseAssets(Path(folder), Architecture("decoder", "llama"), None, NO_TOKENIZER, "made up")
        before = 0.0 if device().type == "cuda" else memory_mb("VmRSS")
        torch.manual_seed(recipe.seed)
        model, block = make_tunable(point, recipe, dtype)
        loader, plan = batch(recipe, model, found, machines, tokens, run, reporter)
        state = State(model, make_optimizer(model, plan))

        def fetch(step: int) -> list[Batch]:
            return loader[step] if step else loader[step][:1]

        with run.held():
            told.say(block=block, device=torch.cuda.get_device_name() if device().type == "cuda" else "")
            try:
                train(model, found.objective, RotaryTables(told, fetch, run, 1), state, plan, run, dict, machines, Stop())
            except Over:
                told.say(**memory_since(before))
