"""The contract Method -> Attachment: how a base model is made trainable, and what attaching did.

The alignment law: after `attach`, the model still maps ids to outputs row by row and token by token, whatever was inserted.
So any method works with any objective: methods + objectives, not methods x objectives.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weitiao.core.messages import Message
from weitiao.core.registry import Component

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

ParameterGroup = dict[str, Any]
"""{"names": parameter names, "rate": factor on the learning rate, "weight_decay": ...}; the last two may be absent."""


@dataclass(frozen=True)
class UpperLevel:
    """The upper level of a bilevel method (train/steps/bilevel.py): weights that are trained on rows of their own."""

    names: frozenset[str]
    """The upper level's parameters; all others are of the lower level."""
    fraction: float
    """Fraction of the rows that the upper level is trained on."""
    unroll: float = 0.0
    """Length of the lower level's step that the upper gradient looks through; 0: first-order, it looks through none."""

    def holds(self, row: int) -> bool:
        """Whether a row is one of the upper level's: by its number alone, spread evenly over the data."""
        return (row + 1) * 0x9E3779B1 % 2**32 < self.fraction * 2**32  # multiples of the golden ratio are spread evenly


@dataclass
class Attachment:
    """What attaching did, and how to switch it off, merge or export it. What a method cannot do is None."""

    trainable: set[str]
    """Names of the model's trainable parameters. With the objective's heads, they are all that is trained and saved."""
    buffers: set[str] = field(default_factory=set)
    """Names of buffers that are saved too (AdaLoRA's importances)."""
    groups: Callable[[int], list[ParameterGroup]] | None = None
    """step -> parameter groups (LoRA+, layer-wise decay); None: one group."""
    virtual_tokens: Callable[[], tuple[int, ...]] = tuple
    """Ids beyond the vocabulary, put before every row and filled by the method (soft prompts, prefixes)."""
    set_enabled: Callable[[bool], None] | None = None
    """False: behave as the base model, which gives a free reference model."""
    select_adapter: Callable[[Sequence[str], Sequence[int] | None], AbstractContextManager[None]] | None = None
    """See `adapters_by_row`."""
    adapter_version: Callable[[str], int] = lambda name: 0
    """A number that changes when another adapter gets a name: keys and values that were cached with it are void."""
    merge: Callable[[], None] | None = None
    """Merge the trained weights into the base weights, in place, and leave a plain model."""
    as_peft: Callable[[], tuple[dict[str, Any], dict[str, Tensor]]] | None = None
    """PEFT's adapter_config, and the tensors under PEFT's names."""
    from_peft: Callable[[dict[str, Tensor]], None] | None = None
    """Copy tensors under PEFT's names into the trainable parameters."""
    penalty: Callable[[], Tensor] | None = None
    """A scalar that is added to the loss once per step."""
    upper: UpperLevel | None = None
    """Of a method with step "bilevel"."""
    before_step: Callable[[int], None] | None = None
    """Called with the step number (from 0) before its gradients are computed: gradual unfreezing."""
    after_step: Callable[[int, int], None] | None = None
    """Called with the step number (from 0) and the number of steps, after the optimizer step and before gradients are
    cleared."""

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
    learning_rate_reason: ClassVar[Message]
    step: ClassVar[str] = "accumulate"
    """The file in train/steps/ that this method needs."""
    starts_at_base: ClassVar[bool] = True
    """Attaching changes no output."""
    encoder_decoder: ClassVar[bool] = True
    """It works on encoder-decoder models too."""
    trains_base: ClassVar[bool] = False
    """It trains the base's own weights, which are then stored in fp32: bf16 would round small steps away."""
    low_rank: ClassVar[bool] = False
    """All that it changes are linear layers, each by low_rank.LowRankLinear: many such adapters share one base."""
    rounds_base: ClassVar[bool] = False
    """It stores the base's weights in fewer bits (see `prepare`): switched off, it is the rounded base."""

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "Method | None":
        """The method that a PEFT adapter_config describes; None: it is another one."""
        return None

    @staticmethod
    def untouched() -> "Method":
        """No method: the base model as it is, for inference and evaluation."""
        return _Untouched()

    def fit(self, tokenize: Callable[[str], list[int]]) -> "Method":
        """The same method with the token ids of its own texts filled in (a prompt initialized from a text)."""
        return self

    def copy_sources_into(self, folder: Path) -> "Method":
        """The same method with the files it depends on copied into the Run's folder, so that the Run needs nothing else."""
        return self

    def load_options(self) -> dict[str, Any]:
        """Extra arguments for loading the base model."""
        return {"dtype": torch.float32} if self.trains_base else {}

    def prepare(self, model: "PreTrainedModel", device: torch.device) -> None:
        """Change the loaded weights before they go to the device (QLoRA quantizes them)."""
        return

    @abstractmethod
    def attach(self, model: "PreTrainedModel") -> Attachment:
        """Make the model trainable, in place."""


class _Untouched(Method):
    learning_rate: ClassVar[float] = 0.0
    learning_rate_reason: ClassVar[Message] = Message("nothing is trained")

    def attach(self, model: nn.Module) -> Attachment:
        model.requires_grad_(False)
        return Attachment(trainable=set(), set_enabled=lambda enabled: None, merge=lambda: None)
