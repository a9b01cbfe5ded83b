"""What the runs of LLaMA-Factory and LitGPT share: their options, and the JSON line of bench/sft/trl_side.py's form."""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from bench.shared.memory import memory_mb

TRL_LEARNING_RATE = 2e-5  # TRL's own; bench/sft/trl_side.py reports it


class Measurement:
    """Counts, losses and times of the steps; memory before the model and at the peak."""

    def __init__(self) -> None:
        self.started, self.before, self.peak = time.perf_counter(), memory_mb("VmRSS"), 0.0
        self.last = self.started
        self.counts: list[dict[str, int]] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def start_training(self) -> None:
        """The first step is timed from here (and left out of the speed)."""
        self.last = time.perf_counter()

    def count(self, **counts: int) -> None:
        self.counts.append(counts)

    def end_step(self) -> None:
        """From the end of one step to the end of the next, so fetching rows and logging are included."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now

    def end_training(self) -> None:
        """Reads the peak memory; what a peer does afterwards (merging, plots) is not part of training."""
        self.peak = memory_mb("VmHWM")

    def steps(self) -> list[dict]:
        """One entry per optimizer step; the micro-batches of a step are added up."""
        micro_batches = len(self.counts) // len(self.seconds)
        assert len(self.losses) == len(self.seconds) and len(self.counts) == micro_batches * len(self.seconds)
        by_step = [self.counts[start : start + micro_batches] for start in range(0, len(self.counts), micro_batches)]
        totals = [{key: sum(counts[key] for counts in step) for key in step[0]} for step in by_step]
        columns = zip(self.losses, totals, self.seconds, strict=True)
        return [
            {"step": number, "loss": loss, **counts, "seconds": seconds}
            for number, (loss, counts, seconds) in enumerate(columns, 1)
        ]

    def report(self, options: argparse.Namespace, system: str, packages: list[str], settings: dict) -> dict:
        steps = self.steps()
        assert len(steps) == options.steps
        timed = steps[1:]
        return {
            "system": system,
            "variant": options.variant,
            "precision": options.precision,
            "seed": options.seed,
            "threads": torch.get_num_threads(),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            "settings": settings,
            "steps": steps,
            "tokens": sum(step["tokens"] for step in steps),
            "supervised": sum(step["supervised"] for step in steps),
            "tokens_per_second": sum(step["tokens"] for step in timed) / sum(step["seconds"] for step in timed),
            "memory": {"before_model_mb": self.before, "peak_mb": self.peak, "used_mb": self.peak - self.before},
            "wall_seconds": time.perf_counter() - self.started,
        }


def trainable_facts(model: torch.nn.Module) -> dict:
    """The number of trained parameters, and the dtypes of frozen and trained ones."""
    groups = {flag: [one for one in model.parameters() if one.requires_grad is flag] for flag in (True, False)}
    return {
        "base_dtype": "/".join(sorted({str(one.dtype) for one in groups[False]})),
        "trained_dtype": "/".join(sorted({str(one.dtype) for one in groups[True]})),
        "trained_parameters": sum(one.numel() for one in groups[True]),
    }


def read_options(doc: str, variants: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--variant", choices=variants, default="defaults")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=TRL_LEARNING_RATE, help="default: TRL's own")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first step is not timed.")
    options.model, options.train, options.out = (path.resolve() for path in (options.model, options.train, options.out))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return options


def print_report(report: dict) -> None:
    print(json.dumps(report), flush=True)
