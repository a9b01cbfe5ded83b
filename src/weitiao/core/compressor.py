"""The contract Compressor: how a merged model is made smaller, as a change of the tensors in its files.

    merged folder --tensor by tensor--> change(name, tensor) --> compressed folder        + changes of config.json
                                        {} drops it, several tensors replace it

So one tensor at a time is in memory, and whatever transformers reads can be compressed. A technique that has to see
activations gets the opened model and rows to run through it.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.architecture import Architecture
from weitiao.core.messages import Message
from weitiao.core.registry import Component

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

Change = Callable[[str, Tensor], dict[str, Tensor]]
"""(a tensor's name in the file, the tensor) -> what is stored instead, by name."""


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of the model: attention and MLP, not embeddings, the output head or an objective's head."""

    name: str
    """Of its module; its weight is `<name>.weight`."""
    shape: tuple[int, int]
    """(D_out, D_in)"""
    transposed: bool
    """The file holds [D_in, D_out] (GPT-2's Conv1D)."""


@dataclass(frozen=True)
class Subject:
    """A merged model that is to be compressed."""

    folder: Path
    architecture: Architecture
    config: Mapping[str, Any]
    """Its config.json."""
    linears: Mapping[str, LinearLayer]
    """By the name of the weight in the files."""
    others: Sequence[str]
    """Names of the linear layers that are left as they are: heads."""
    dtype: torch.dtype
    """What weights that keep their form, and scales, are stored in."""
    open: Callable[[], "PreTrainedModel"]
    """Loads it, in fp32, without a gradient."""
    rows: Sequence[Sequence[int]] = ()
    """Token ids of rows to calibrate on."""
    track: Callable[[Sequence[Any], Message], Iterator[Any]] = lambda items, label: iter(items)
    """Shows a progress bar over items."""


@dataclass(frozen=True)
class Compression:
    """What a technique does to the files."""

    change: Change
    config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of config.json that are replaced."""
    notes: Sequence[Message] = ()
    """What a reader of the result must know."""


class Compressor(Component):
    """One file in deploy/compressors/ holds one Compressor: a frozen model of its settings."""

    result: ClassVar[str]
    """quantized: fewer bits; pruned: fewer weights; command: files and a command for another environment."""
    reads_rows: ClassVar[bool] = False
    """It is calibrated on rows."""
    decoders_only: ClassVar[bool] = False


class WeightCompressor(Compressor):
    """A technique that runs here."""

    @abstractmethod
    def plan(self, subject: Subject) -> Compression:
        """What it does to this model.

        Raises:
            ModelError: it cannot be done.
        """


class CommandCompressor(Compressor):
    """A technique that runs in an environment of its own, because its packages need other versions than weitiao."""

    result: ClassVar[str] = "command"
    reads_rows: ClassVar[bool] = True
    decoders_only: ClassVar[bool] = True

    rows: int = Field(default=256, ge=1)
    """How many rows of the Run it is calibrated on."""

    @abstractmethod
    def files(self, subject: Subject, model: str, target: str) -> dict[str, str]:
        """The files of the folder: name -> text. `README.md` names the commands.

        Args:
            model: the folder of the merged model, as the commands name it.
            target: the folder of the result.
        """
