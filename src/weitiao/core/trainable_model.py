"""TrainableModel: an objective's one handle on the model. Every forward pass of training goes through it."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from weitiao.core.architecture import Architecture
from weitiao.core.batch import Batch, with_virtual_tokens
from weitiao.core.engine import Engine
from weitiao.core.lm_head import LMHead
from weitiao.core.method import Attachment
from weitiao.core.processor import Processor
from weitiao.core.shared_prefix import no_prefix_sharing

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

HEAD = "head."  # prefix of the heads' parameter names
EmbeddingChange = Callable[[Tensor, Tensor], Tensor]
"""(embeddings [..., T, D], the row that each token is in [T]) -> embeddings [..., T, D]."""


class Backbone(Protocol):
    """Batch -> the last hidden states [T, D], after the final norm; or only those at some positions, [N, D]."""

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor: ...


class BatchCache:
    """Results of a batch, shared while it is on: several readers then see one forward pass, one dropout mask, one graph."""

    def __init__(self) -> None:
        self._results: dict[tuple[str, int], tuple[Batch, Tensor]] | None = None

    @property
    def is_on(self) -> bool:
        return self._results is not None

    def get(self, key: str, batch: Batch, compute: Callable[[], Tensor]) -> Tensor:
        """The result under a key; computed once per batch while the cache is on, and at every call otherwise."""
        if self._results is None:
            return compute()
        if (key, id(batch)) not in self._results:
            self._results[key, id(batch)] = batch, compute()  # holds the batch, so that no later one gets its id
        return self._results[key, id(batch)][1]

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, results are shared."""
        with self._replaced({}):
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, nothing is shared."""
        with self._replaced(None):
            yield

    @contextmanager
    def emptied(self) -> Iterator[None]:
        """Inside, nothing from outside is reused; results are shared only if they were before."""
        with self._replaced({} if self.is_on else None):
            yield

    @contextmanager
    def _replaced(self, results: dict[tuple[str, int], tuple[Batch, Tensor]] | None) -> Iterator[None]:
        outer, self._results = self._results, results
        try:
            yield
        finally:
            self._results = outer


@dataclass(frozen=True)
class BaseIdentity:
    """Hashes that change when a weight of the base model does."""

    exact: str = ""
    bf16: str = ""
    """Of the weights rounded to bf16: the same in whatever precision the base was loaded."""


@dataclass
class TrainableModel:
    """A base model with its method attached, and the objective's heads."""

    model: "PreTrainedModel"
    """The transformers model, with the method attached in place."""
    attachment: Attachment
    processor: Processor
    architecture: Architecture
    backbone: Backbone
    """The forward pass up to the last hidden states."""
    lm_head: LMHead
    """The forward pass from there to tokens. Encoder-only models have none: any use of it raises ModelError."""
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    base_identity: BaseIdentity = field(default_factory=BaseIdentity)
    warm_started: bool = False
    """Training starts from another run's weights instead of the base model's."""
    initial_weights: dict[str, Tensor] = field(default_factory=dict)
    """A copy of the trainable weights before step 1, where a regularizer needs it."""
    cache: BatchCache = field(default_factory=BatchCache)
    _make_engine: "Callable[[TrainableModel], Engine] | None" = None
    """Of a decoder: makes what generates text with it; see `new_engine` in core/generation.py."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def training(self) -> bool:
        """Whether dropout is on."""
        return self.model.training

    def trainable(self) -> dict[str, nn.Parameter]:
        """All trainable parameters by name; the heads' names start with HEAD."""
        parameters = dict(self.model.named_parameters())
        heads = {HEAD + name: p for name, p in self.heads.named_parameters()}
        return {**{name: parameters[name] for name in sorted(self.attachment.trainable)}, **heads}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers that are saved with the trainable parameters, by name."""
        buffers = dict(self.model.named_buffers())
        return {name: buffers[name] for name in sorted(self.attachment.buffers)}

    def hidden(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """The last hidden states.

        Args:
            rows: [N] ascending positions in the batch: the last layer computes only these, where it can.

        Returns:
            [T, D], or [N, D] at `rows`.
        """
        if rows is None:
            return self.cache.get("hidden", batch, lambda: self._hidden(batch))
        return self.hidden(batch)[rows] if self.cache.is_on else self._hidden(batch, rows)

    def _hidden(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        if batch.adapters:  # multi-adapter layers need every token's row, so nothing can be left out
            with self.attachment.adapters_by_row(batch.adapters, batch.lengths):
                return self.backbone(batch) if rows is None else self.backbone(batch)[rows]
        virtual_tokens = self.attachment.virtual_tokens()
        if not virtual_tokens:
            return self.backbone(batch, rows)
        longer, positions = with_virtual_tokens(batch, virtual_tokens)
        return self.backbone(longer, positions if rows is None else positions[rows])

    def logprobs(self, batch: Batch) -> Tensor:
        """[N] fp32: the log-probability of every supervised label, in the batch's order. Never makes [T, V]."""
        supervised = batch.supervised
        return self.lm_head.logprobs(self.hidden(batch, supervised), batch.labels[supervised])

    def logits(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """[T, V] fp32, or [N, V] at `rows`: large, so for objectives that need more than `logprobs`."""
        return self.lm_head.logits(self.hidden(batch, rows))

    def for_task(self, task: str) -> "TrainableModel":
        """The model with the heads of one of several tasks; "" where there is one task."""
        heads = {name.removeprefix(f"{task}/"): x for name, x in self.heads.items() if name.startswith(f"{task}/")}
        return replace(self, heads=nn.ModuleDict(heads)) if task else self

    @contextmanager
    def reference(self) -> Iterator["TrainableModel"]:
        """Inside, the method is switched off: the model is the base model."""
        with self.cache.off(), self.attachment.base():
            yield self


# -- the model in another state ---------------------------------------------------------------------------------------


@contextmanager
def evaluating(model: TrainableModel) -> Iterator[None]:
    """Inside, dropout is off; afterwards the random generators are as before, so measuring never changes a run."""
    was_training = model.training
    model.model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        model.model.train(was_training)


@contextmanager
def as_base_model(model: TrainableModel) -> Iterator[TrainableModel]:
    """Inside, a model before its first step is the base model, or the run that it continues.

    A randomly initialized soft prompt or prefix changes outputs, so it is switched off. A method that trains the base's
    own weights has not changed them yet.
    """
    on = model.attachment.set_enabled is None or model.warm_started
    with nullcontext() if on else model.reference():
        yield model


@contextmanager
def changed_embeddings(model: TrainableModel, change: EmbeddingChange, batch: Batch) -> Iterator[None]:
    """Inside, the token embeddings of this batch go through `change`."""
    lengths = torch.tensor(batch.lengths, device=batch.input_ids.device) + len(model.attachment.virtual_tokens())
    row_ids = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)

    def replace_output(embedding: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return change(output, row_ids)

    hook = model.model.get_input_embeddings().register_forward_hook(replace_output)
    try:
        with model.cache.emptied(), no_prefix_sharing():
            yield
    finally:
        hook.remove()


# -- questions about weights ------------------------------------------------------------------------------------------


def reference_logits(model: TrainableModel, ids: Sequence[int]) -> Tensor:
    """[T, V] of one row by transformers' own forward pass: slow, and what the fast implementation is checked against."""
    input_ids = torch.tensor([model.attachment.prepend_virtual_tokens(ids)], device=model.device)
    return model.model(input_ids=input_ids, use_cache=False).logits[0, -len(ids) :].float()


def trains_untied_embedding(model: TrainableModel) -> bool:
    """Whether the token embedding is trained and not tied to an output head.

    Only the rows of tokens that occur then get a gradient; a tied embedding gets one everywhere, through the head.
    """
    weight = model.model.get_input_embeddings().weight
    tied = weight is getattr(model.model.get_output_embeddings(), "weight", None)
    tied = tied or any(getattr(head, "tied", False) for head in model.heads.values())
    return not tied and any(weight is p for p in model.trainable().values())


def identity_of(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Sixteen hex digits of a hash over the names, shapes and checksums of all weights.

    Args:
        dtype: round the weights to it first.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        weight = weight.detach() if dtype is None else weight.detach().to(dtype)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {checksum(weight)}".encode())
    return digest.hexdigest()[:16]


def checksum(weight: Tensor) -> int:
    """The sum of a weight's elements, their bits read as integers."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    chunks = weight.detach().contiguous().view(integer).flatten().split(2**22)  # torch sums through an int64 copy
    return int(torch.stack([chunk.sum(dtype=torch.int64) for chunk in chunks]).sum()) if weight.numel() else 0


def layer_of(name: str) -> int | None:
    """The number of the layer that a weight belongs to, by its name.

    >>> layer_of("model.layers.3.self_attn.q_proj.weight"), layer_of("lm_head.weight")
    (3, None)
    """
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None
