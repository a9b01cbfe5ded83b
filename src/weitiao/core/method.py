"""The contract Method -> Attachment: how a base model is made trainable, and what that did.

The alignment law: after `attach`, the model still maps ids to outputs row for row and token for token, whatever was
put inside. It is why any method goes with any objective: methods + objectives, not methods x objectives.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weitiao.core.registry import Component


@dataclass(frozen=True)
class UpperLevel:
    """The upper level of two (train/steps/bilevel.py): weights that learn from rows of their own."""

    names: frozenset[str]
    """Weights of the upper level; all others are of the lower one."""
    fraction: float
    """Of all rows, how many are the upper level's."""
    unroll: float = 0.0
    """Length of the lower level's step that the upper gradient looks through; 0: it looks through none."""

    def holds(self, row: int) -> bool:
        """Whether a row is the upper level's: by its number alone, spread evenly over the data (by the golden ratio)."""
        return (row + 1) * 0x9E3779B1 % 2**32 < self.fraction * 2**32


@dataclass
class Attachment:
    """What attaching did, and how to undo, fold or export it. What a method cannot do is None here."""

    trainable: set[str]
    """Names of parameters of the model. With the objective's heads they are all that is trained and saved."""
    buffers: set[str] = field(default_factory=set)
    """Names of buffers that must be saved too (AdaLoRA's importances)."""
    groups: Callable[[int], list[dict[str, Any]]] | None = None
    """step -> parameter groups {names, rate, weight_decay} (LoRA+, layer-wise decay); None: one group."""
    virtual_tokens: Callable[[], tuple[int, ...]] = tuple
    """Ids beyond the vocabulary that stand before every row, for the method to fill (soft prompts, prefixes)."""
    set_enabled: Callable[[bool], None] | None = None
    """False: behave as the base model (a free reference)."""
    select_adapter: Callable[[Sequence[str], Sequence[int] | None], AbstractContextManager[None]] | None = None
    """(each row's adapter by name, "" for none; the rows' lengths, where they lie end to end): inside, each row of the
    batch goes through its own."""
    merge: Callable[[], None] | None = None
    """Fold what was learnt into the base weights, in place, and leave a plain model behind."""
    as_peft: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]] | None = None
    """PEFT's adapter_config and tensors, under PEFT's names."""
    from_peft: Callable[[dict[str, Tensor]], None] | None = None
    """Take over tensors under PEFT's names."""
    penalty: Callable[[], Tensor] | None = None
    """Added to the loss once a step."""
    upper: UpperLevel | None = None
    """For `step = "bilevel"`: what learns from rows of its own."""
    before_step: Callable[[int], None] | None = None
    """Runs before the gradients of step number (from 0) are taken: what is unfrozen by then."""
    after_step: Callable[[int, int], None] | None = None
    """Runs when the weights have moved and the gradients are still there; with the step (from 0) and how many there
    will be."""

    def prepend_virtual_tokens(self, ids: Sequence[int]) -> list[int]:
        """One row as the transformers model expects it."""
        return [*self.virtual_tokens(), *ids]

    def adapters_by_row(self, names: Sequence[str], lengths: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """Inside, each row of the batch goes through its own adapter.

        Args:
            names: of each row's adapter, "" for none; (): there is nothing to choose.
            lengths: of the rows, where they are packed.
        """
        if not names:
            return nullcontext()
        if self.select_adapter is None:
            raise ValueError("this model has no adapters to choose from")
        return self.select_adapter(names, lengths)

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside, the model behaves as if the method had never been attached."""
        if self.set_enabled is None:
            raise ValueError("this method trains the base weights themselves: keep a copy instead")
        self.set_enabled(False)
        try:
            yield
        finally:
            self.set_enabled(True)


class Method(Component):
    """One file in model/methods/ holds one Method: a frozen model of its settings."""

    learning_rate: ClassVar[float]
    """What `train.learning_rate: auto` means for this method."""
    learning_rate_reason: ClassVar[str]
    step: ClassVar[str] = "accumulate"
    """The part of train/steps/ that this method needs."""
    starts_at_base: ClassVar[bool] = True
    """A freshly attached method changes no output."""
    encoder_decoder: ClassVar[bool] = True
    """It takes models with an encoder and a decoder, too."""
    trains_base: ClassVar[bool] = False
    """It trains weights of the base itself. They are stored in fp32 whatever is computed in: bf16 would round small
    steps away."""
    rounds_base: ClassVar[bool] = False
    """The base that it starts at, and leaves when switched off, is stored in fewer bits: see `prepare`."""

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "Method | None":
        """The method that a PEFT adapter_config describes, or None if it is not this one."""
        return None

    @staticmethod
    def untouched() -> "Method":
        """No method: the base model as it is, for asking and measuring."""
        return _Untouched()

    def fit(self, tokenize: Callable[[str], list[int]]) -> "Method":
        """The same method with the token ids of its own texts filled in (a prompt initialized from a text)."""
        return self

    def copy_sources_into(self, folder: Path) -> "Method":
        """The method at home in a Run's folder: what it stands on is copied there, so that the Run needs nothing else."""
        return self

    def load_options(self) -> dict[str, Any]:
        """Extra arguments for loading the base model."""
        return {"dtype": torch.float32} if self.trains_base else {}

    def prepare(self, model: nn.Module, device: torch.device) -> None:
        """Look at the weights just read, before they go to the device (QLoRA: store them in fewer bits)."""
        return

    @abstractmethod
    def attach(self, model: nn.Module) -> Attachment:
        """Make the model trainable, in place."""


class _Untouched(Method):
    learning_rate: ClassVar[float] = 0.0
    learning_rate_reason: ClassVar[str] = "nothing is trained"

    def attach(self, model: nn.Module) -> Attachment:
        model.requires_grad_(False)
        return Attachment(trainable=set(), set_enabled=lambda on: None, merge=lambda: None)
