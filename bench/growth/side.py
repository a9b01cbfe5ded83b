"""One side of one point of the growth suite: a Llama of random weights, LoRA, and weitiao's own loop on synthetic rows.

It runs in a process that the suite forks for it, and takes a step on request. Everything except reading, encoding and
loading is weitiao's pipeline: attaching, resolving `auto`, the packed batches, the loop with guard and events.
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

from bench.growth.series import IMPLEMENTATIONS, RANK, Point
from bench.methods.weitiao_side import Finished, RoundLoader
from bench.shared.memory import memory_mb
from weitiao.core.architecture import Architecture
from weitiao.core.batch import IGNORE, Batch, Row
from weitiao.core.hardware import device
from weitiao.core.mixing import Groups
from weitiao.core.recipe import Recipe, make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.backbone.choose import choose_backbone, make_lm_head, use_reference_implementation
from weitiao.model.layers import attention
from weitiao.model.loading.load import Base
from weitiao.pipeline.assemble import PreparedData, plan_training, setup_environment
from weitiao.pipeline.load import BaseAssets, attach
from weitiao.plan.resolve import resolve_rows
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.loop import train
from weitiao.train.settings import make_optimizer
from weitiao.train.signals import Stop

ENDLESS = 1_000_000  # steps in the recipe; the suite stops much earlier
NO_TOKENIZER: Any = SimpleNamespace(text=list, stop_ids=(0,), model_max_length=10**30)


class SyntheticRows:
    """Random token ids, all rows of one length; the last `share` per cent of each row carry loss."""

    fingerprint = "synthetic"

    def __init__(self, point: Point, num_rows: int) -> None:
        self.point, self.lengths = point, np.full(num_rows, point.length)
        self.source, self.tasks = np.zeros(num_rows, np.int64), []

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Row:
        ids = np.random.default_rng((1, i)).integers(0, self.point.vocabulary, self.point.length + 1)
        labels = ids[1:].copy()
        labels[: self.point.length - max(1, round(self.point.length * self.point.share / 100))] = IGNORE
        return {"input_ids": ids[:-1], "labels": labels}  # pyright: ignore[reportReturnType]


@dataclass
class PipeChannel:
    """A side's connection to the suite; a side whose suite has ended ends, too."""

    connection: Connection
    parent: int
    """The suite's process id."""

    def send(self, **facts: Any) -> None:
        self.connection.send({"busy": time.process_time(), **facts})

    def wait_for_go(self) -> bool:
        while not self.connection.poll(0.5):
            if os.getppid() != self.parent:
                raise SystemExit("The benchmark has ended.")
        return self.connection.recv() == "go"


def recipe_for(point: Point, side: str, precision: str, threads: int, out: Path) -> Recipe:
    """The recipe; base and data are not opened."""
    return make_recipe(
        {
            "base": "random",
            "data": str(out.with_name("synthetic.jsonl")),
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
                "implementation": IMPLEMENTATIONS[side],
                "evaluate_every": 0,
                "save_every": 0,
                "num_threads": threads,
            },
            "evaluate": {"metrics": ["loss"], "samples": 0, "forgetting": False},
            "out": str(out),
            "seed": 0,
        }
    )


def make_base(point: Point, dtype: torch.dtype) -> Base:
    """The model in memory and the implementation that weitiao chooses for it."""
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
    backbone, decision = choose_backbone(model, dtype)
    return Base(
        model,
        architecture_of(model.config),
        backbone,
        make_lm_head(model),
        [decision],
        sum(p.numel() for p in model.parameters()),
    )


def make_model(point: Point, recipe: Recipe, dtype: torch.dtype) -> tuple[TrainableModel, str]:
    """The model with its method, and the name of the implementation that runs."""
    base = make_base(point, dtype)
    model = attach(base, recipe.method, recipe.objective, NO_TOKENIZER)
    (decision,) = base.decisions
    if IMPLEMENTATIONS["plain"] == recipe.train.implementation:
        decision = use_reference_implementation(model, dtype)
    return model, decision.value


def memory_since(before: float) -> dict[str, float]:
    """The peak of the process, or of torch's allocations on a GPU."""
    peak = torch.cuda.max_memory_allocated() / 2**20 if device().type == "cuda" else memory_mb("VmHWM")
    return {"before_model_mb": before, "peak_mb": peak}


def run_side(channel: PipeChannel, point: Point, side: str, precision: str, threads: int, steps: int) -> None:
    """Step 0 is one micro-batch, the warm-up; then up to `steps` steps."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_for(point, side, precision, threads, Path(folder) / "run")
        Path(recipe.data[0].path).touch()  # a run's identity holds its data files; the rows are made here
        run, distributed, reporter = Run.create(recipe), Distributed(device()), Reporter(Console(quiet=True))
        _, dtype = setup_environment(recipe, run, reporter)
        rows: Any = SyntheticRows(point, (steps + 1) * max(1, point.batch // point.length))
        limits = resolve_rows(recipe, recipe.objective, point.length)
        encoded: Any = SimpleNamespace(rows=rows)
        assets = BaseAssets(Path(folder), Architecture("decoder", "llama"), NO_TOKENIZER, NO_TOKENIZER, "synthetic")
        groups = Groups(("synthetic",), np.zeros(len(rows), int))
        data = PreparedData(assets, recipe.objective, limits, encoded, None, None, recipe.evaluate, [], groups)
        before = 0.0 if device().type == "cuda" else memory_mb("VmRSS")
        torch.manual_seed(recipe.seed)
        model, block = make_model(point, recipe, dtype)
        _, loader, plan = plan_training(recipe, model, data, assets, distributed)
        state = State(model, make_optimizer(model, plan))

        def fetch(step: int) -> list[Batch]:
            return loader[step] if step else loader[step][:1]

        with run.locked():
            channel.send(block=block, device=torch.cuda.get_device_name() if device().type == "cuda" else "")
            rounds = RoundLoader(channel, fetch, run, round_steps=1)
            try:
                train(model, data.objective, rounds, state, plan, run, dict, distributed, Stop())
            except Finished:
                channel.send(**memory_since(before))
