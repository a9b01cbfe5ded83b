"""How rows of several groups (sources, tasks, classes) are mixed: what a recipe says of it, and what a loader needs.

    size_g  = min(weight_g x tokens_g, cap_g)
    share_g = size_g^(1/T) / sum over h of size_h^(1/T)          of all tokens; or what `share` says

T5's mixture with an "artificial data set size limit" and a temperature: Raffel et al. 2020, "Exploring the Limits of
Transfer Learning with a Unified Text-to-Text Transformer", arXiv 1910.10683, sec. 3.5.2; there in rows, here in tokens.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from weitiao.core.errors import InvalidValue
from weitiao.core.registry import Settings

if TYPE_CHECKING:  # a recipe is read without numpy
    import numpy as np


class Cap(Settings):
    """The most that is used of a source or group: rows or tokens an epoch (others in the next one), or epochs."""

    rows: int | None = Field(default=None, ge=1)
    """Rows an epoch; the next epoch uses others."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens an epoch; the next epoch uses others."""
    epochs: float | None = Field(default=None, gt=0)
    """How often each of its rows is used in the whole run."""

    @model_validator(mode="after")
    def _one_limit(self) -> "Cap":
        if sum(x is not None for x in (self.rows, self.tokens, self.epochs)) != 1:
            raise InvalidValue("write one of rows, tokens and epochs, as in {example}", example="{rows: 1000}")
        return self


class MixedGroup(Settings):
    """What is asked of a class or a task."""

    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Its size counts this many times."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Its share of all tokens; null: by its size."""
    cap: Cap | None = None
    """The most that is used of it; null: no limit."""


class Mixing(Settings):
    """Shares of sources, tasks or classes in all tokens, kept from step to step."""

    by: Literal["source", "task", "label"] = "source"
    """What has a share: each source, each task (multi_task), or each class (of classification, or of short answers)."""
    temperature: float = Field(default=1.0, ge=1)
    """Shares in proportion to size^(1/T): 1: by size; 2 is usual; 1000: all alike."""
    stopping_strategy: Literal["total", "first_exhausted", "all_exhausted"] = "total"
    """The length of an epoch: as many tokens as there are; until the first group is used up (undersampling); or until each
    is (oversampling)."""
    groups: dict[str, MixedGroup] = Field(default_factory=dict)
    """weight, share and cap by name, with by: label or by: task; of sources they are written in data."""


@dataclass(frozen=True)
class Groups:
    """What is mixed: sources, tasks or classes."""

    names: tuple[str, ...]
    """Unique; what `replay` adds is the last."""
    group: "np.ndarray"
    """[rows] the number of each row's group."""


@dataclass(frozen=True)
class Mixture:
    """What a loader mixes by."""

    group: "np.ndarray"
    """[rows] the number of each row's group, from 0."""
    shares: tuple[float, ...]
    """[groups] of all tokens; they sum to 1."""
    epoch_tokens: float
