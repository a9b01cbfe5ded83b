"""What the runs of LLaMA-Factory and LitGPT share: their options, and the one JSON line, of sft_trl.py's form."""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from memory import memory_mb

TRL_RATE = 2e-5  # TRL's own learning rate; sft_trl.py reports it


class Account:
    """Counts, losses and times of the steps, and memory before the model and at the peak."""

    def __init__(self) -> None:
        self.begun, self.before, self.peak = time.perf_counter(), memory_mb("VmRSS"), 0.0
        self.last = self.begun
        self.counts: list[dict[str, int]] = []
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def begin(self) -> None:
        """Training starts: the first step is timed from here (and left out of the speed)."""
        self.last = time.perf_counter()

    def count(self, **counted: int) -> None:
        self.counts.append(counted)

    def end_step(self) -> None:
        """From the end of one step to the end of the next, so fetching rows and logging are included."""
        now = time.perf_counter()
        self.seconds.append(now - self.last)
        self.last = now

    def end(self) -> None:
        """Training is over: what a peer does afterwards (merging, plots) is not its training's memory."""
        self.peak = memory_mb("VmHWM")

    def steps(self) -> list[dict]:
        """One entry an optimizer step; micro-batches of one step are added up."""
        share = len(self.counts) // len(self.seconds)
        assert len(self.losses) == len(self.seconds) and len(self.counts) == share * len(self.seconds)
        parts = [self.counts[start : start + share] for start in range(0, len(self.counts), share)]
        added = [{key: sum(part[key] for part in step) for key in step[0]} for step in parts]
        together = zip(self.losses, added, self.seconds, strict=True)
        return [
            {"step": number, "loss": loss, **counts, "seconds": seconds}
            for number, (loss, counts, seconds) in enumerate(together, 1)
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
            "wall_seconds": time.perf_counter() - self.begun,
        }


def trained(model: torch.nn.Module) -> dict:
    """How many numbers are trained, and in which type the frozen and the trained ones are held."""
    kinds = {learnt: [one for one in model.parameters() if one.requires_grad is learnt] for learnt in (True, False)}
    return {
        "base_dtype": "/".join(sorted({str(one.dtype) for one in kinds[False]})),
        "trained_dtype": "/".join(sorted({str(one.dtype) for one in kinds[True]})),
        "trained_parameters": sum(one.numel() for one in kinds[True]),
    }


def read_options(said: str, variants: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=said.split("\n")[0])
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
    parser.add_argument("--learning-rate", type=float, default=TRL_RATE, help="TRL's own default when not given")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be 2 or more: the first step is not timed.")
    options.model, options.train, options.out = (path.resolve() for path in (options.model, options.train, options.out))
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return options


def tell(report: dict) -> None:
    print(json.dumps(report), flush=True)
