"""What a base model makes of the rows that are inspected: apart, because it needs transformers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from weitiao.core.example import Example
from weitiao.data.inspection.model_fit import model_fit
from weitiao.data.tokenization import ChatProcessor
from weitiao.pipeline.inspect import ModelLook
from weitiao.pipeline.load import open_base_assets


def model_look(base: str) -> ModelLook:
    """Open a base model's tokenizer and chat template; its weights are not read.

    Raises:
        ModelError, RunError: it cannot be found or read.
    """
    assets = open_base_assets(base)
    return partial(_look, processor=assets.processor, limit=assets.max_length, name=base)


def _look(
    rows: Sequence[tuple[int, Example]], total: int, processor: ChatProcessor, limit: int | None, name: str
) -> dict[str, Any]:
    return {"name": name, "total": total, **model_fit(rows, total, processor, limit)}
