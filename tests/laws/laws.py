"""What the laws share: a tiny model with a method attached, and rows of unequal length."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from conftest import TRIED, asked, make_model
from weitiao.core.batch import IGNORE, Batch, pack
from weitiao.core.errors import RecipeError
from weitiao.core.registry import find
from weitiao.core.tunable import TunableModel
from weitiao.model.attention import NAME
from weitiao.model.load import choose_body, vocabulary_head

LENGTHS = (9, 5, 5, 13, 1, 7)


@dataclass
class Ends:
    """As much of a processor as writing needs."""

    stop_ids: tuple[int, ...] = (2,)


def attached(method: str, family: str = "llama", **settings: Any) -> TunableModel:
    """A tiny model of a family with a method attached, always the same."""
    model = make_model(family)
    model.set_attn_implementation(NAME)  # pyright: ignore
    body, _ = choose_body(model, torch.float32)
    head = vocabulary_head(model)
    torch.manual_seed(1)
    with_them = find("method", method)
    if method in ("peft", "f_learning"):
        settings = {**asked(method, family), **settings}
    try:
        attachment = with_them(**settings).attach(model)  # pyright: ignore
    except RecipeError as refused:
        if method == "peft":
            pytest.skip(str(refused))
        if method not in TRIED:
            raise
        assert all(key in str(refused) for key in TRIED[method]), "the refusal says what to write"
        attachment = with_them(**settings, **TRIED[method]).attach(model)  # pyright: ignore
    return TunableModel(model, attachment, Ends(), body, head)  # pyright: ignore


def stir(model: TunableModel, by: float = 0.05) -> None:
    """Move what is trainable away from where it starts."""
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(torch.randn_like(weight) * by)


def make_rows(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> list[dict]:
    """Random rows; about half of each row's positions are supervised, at least one."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for n in lengths:
        ids = torch.randint(3, 320, (n,), generator=random).tolist()
        labels = torch.randint(3, 320, (n,), generator=random).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE if t < n // 2 else x for t, x in enumerate(labels)]})
    return rows


def batch_of(rows: list[dict]) -> Batch:
    return pack(rows, list(range(len(rows))))  # pyright: ignore


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())
