"""What the stations' tests share: a tiny model with a method attached."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Open = Callable[..., Any]


@pytest.fixture
def open_model(tiny_llama: Path) -> Open:
    """open_model(method={...}, objective="sft", base=folder) -> a TrainableModel on the CPU in fp32."""
    from weitiao.core.registry import find
    from weitiao.pipeline import load as pipeline

    def open_(method: dict | None = None, objective: str = "sft", base: Path = tiny_llama, seed: int = 0) -> Any:
        asked = dict(method or {"name": "lora", "rank": 4, "alpha": 8.0})
        part: Any = find("method", asked.pop("name"))(**asked)
        aim: Any = find("objective", objective)()
        torch.manual_seed(seed)
        tokens = pipeline.open_base_assets(str(base))
        return pipeline.load(tokens, part, aim, torch.float32, torch.device("cpu"))[0]

    return open_


@pytest.fixture
def perturb_weights() -> Callable[[Any], Any]:
    """perturb_weights(model): add noise to every trained weight, so that a method changes something."""

    def perturb_weights(model: Any) -> Any:
        torch.manual_seed(7)
        with torch.no_grad():
            for weight in model.trainable().values():
                weight.add_(torch.randn_like(weight) * 0.1)
        return model

    return perturb_weights
