"""TrainableModel: the one handle that an objective has on the model, and the place where speed lives."""

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from weitiao.core.architecture import Architecture
from weitiao.core.batch import IGNORE, Batch, with_virtual_tokens
from weitiao.core.errors import ModelError
from weitiao.core.generation import generate_from_audio, generate_from_text, right_padded
from weitiao.core.lm_head import LMHead
from weitiao.core.method import Attachment
from weitiao.core.processor import Processor
from weitiao.core.shared_prefix import no_prefix_sharing


class Backbone(Protocol):
    """Batch -> the last hidden states [T, D], after the final norm; or only those at some rows, [N, D]."""

    def __call__(self, batch: Batch, rows: Tensor | None = None) -> Tensor: ...


HEAD = "head."  # before the names of the heads' weights


@dataclass
class TrainableModel:
    """A base model with its method attached and the objective's heads beside it."""

    model: nn.Module
    """The transformers model, method attached in place."""
    attachment: Attachment
    processor: Processor
    """Words to token ids and back."""
    architecture: Architecture
    """Decoder, encoder or both; what it reads."""
    backbone: Backbone
    """How the layers run."""
    lm_head: LMHead | None
    """Hidden states -> log-probabilities of tokens; None: an encoder, which writes nothing."""
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    base_identity: str = ""
    """Changes when a weight of the base model does."""
    base_rounded: str = ""
    """The same of weights rounded to bf16: equal in whatever precision a base was loaded."""
    warm_started: bool = False
    """It begins with what another run learnt, not at the base."""
    _cache: dict[tuple[str, int], tuple[Batch, Tensor]] | None = None
    """What batches gave already, while `remembering`."""
    initial_weights: dict[str, Tensor] = field(default_factory=dict)
    """A copy of what trained weights began with, where a regularizer wants one."""
    gather: Callable[[Tensor], Tensor] = lambda x: x
    """All machines' rows of a tensor; on one machine, the tensor."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def training(self) -> bool:
        """Dropout is on."""
        return self.model.training

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.processor.stop_ids

    def trainable(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name: the attachment's parameters and the heads' ('head.<name>...')."""
        here = dict(self.model.named_parameters())
        heads = {HEAD + name: p for name, p in self.heads.named_parameters()}
        return {**{name: here[name] for name in sorted(self.attachment.trainable)}, **heads}

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        return self.model.get_input_embeddings()  # pyright: ignore[reportCallIssue]

    @property
    def untied_embedding_is_trained(self) -> bool:
        """Then only rows of tokens that occur get a gradient; a tied one gets some through the output head everywhere."""
        weight = self.embedding.weight
        head = getattr(self.model.get_output_embeddings(), "weight", None)  # pyright: ignore[reportCallIssue]
        tied = weight is head or any(getattr(x, "tied", False) for x in self.heads.values())
        return not tied and any(weight is p for p in self.trainable().values())

    def buffers(self) -> dict[str, Tensor]:
        """What else is saved, by name."""
        here = dict(self.model.named_buffers())
        return {name: here[name] for name in sorted(self.attachment.buffers)}

    # -- what objectives call -----------------------------------------------------------------------------------------

    def hidden(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """[T, D]: the last hidden states; or [N, D], those at `rows` [N] (ascending), which spares the last layer work."""
        if rows is None:
            return self.cached("hidden", batch, lambda: self._hidden(batch))
        return self._hidden(batch, rows) if self._cache is None else self.hidden(batch)[rows]

    def cached(self, what: str, batch: Batch, make: Callable[[], Tensor]) -> Tensor:
        """What `make` makes of a batch; while `remembering`, it is made once."""
        if self._cache is None:
            return make()
        if (what, id(batch)) not in self._cache:
            self._cache[what, id(batch)] = batch, make()  # with the batch itself: a later one may not get its id
        return self._cache[what, id(batch)][1]

    def _hidden(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        if batch.adapters:  # their layers count on the rows of all tokens
            with self.routed(batch.adapters, batch.lengths):
                return self.backbone(batch) if rows is None else self.backbone(batch)[rows]
        virtual_tokens = self.attachment.virtual_tokens()
        if not virtual_tokens:
            return self.backbone(batch, rows)
        longer, kept = with_virtual_tokens(batch, virtual_tokens)
        return self.backbone(longer, kept if rows is None else kept[rows])

    def routed(self, adapters: Sequence[str], lengths: Sequence[int] | None = None) -> AbstractContextManager[None]:
        """Inside, each row of the batch goes through its own adapter."""
        if not adapters:
            return nullcontext()
        if self.attachment.select_adapter is None:
            raise ValueError("this model has no adapters to choose from")
        return self.attachment.select_adapter(adapters, lengths)

    def prompted(self, ids: Sequence[int]) -> list[int]:
        """What a model of transformers is given for these ids: the method's slots before them."""
        return [*self.attachment.virtual_tokens(), *ids]

    def plain_logits(self, ids: Sequence[int]) -> Tensor:
        """[T, V] by transformers' own forward pass, one row alone: slow, and the truth that others are held to."""
        given = torch.tensor([self.prompted(ids)], device=self.device)
        return self.model(input_ids=given, use_cache=False).logits[0, -len(ids) :].float()

    def logprobs(self, batch: Batch) -> Tensor:
        """[N] fp32: the log-probability of every supervised target, in the order of the batch. Never [T, V]."""
        supervised = (batch.labels != IGNORE).nonzero()[:, 0]  # [N]
        return self.required_lm_head.logprobs(self.hidden(batch, supervised), batch.labels[supervised])

    def token_log_probs(self, batch: Batch) -> Tensor:
        """[N, V] fp32: the log-probabilities of every token at every supervised place. Large; for regularizers."""
        supervised = (batch.labels != IGNORE).nonzero()[:, 0]
        return self.required_lm_head.logits(self.hidden(batch, supervised)).log_softmax(-1)

    def nll_by_segment(self, batch: Batch) -> list[tuple[float, float]]:
        """(summed negative log-probability, supervised tokens) of each segment."""
        counts = [int((batch.labels[a:b] != IGNORE).sum()) for a, b in zip(batch.bounds, batch.bounds[1:])]
        parts = (-self.logprobs(batch)).split(counts)
        return [(float(part.sum()), float(count)) for part, count in zip(parts, counts)]

    def logits(self, batch: Batch) -> Tensor:
        """[T, V] fp32, for those who really need all of it."""
        return self.required_lm_head.logits(self.hidden(batch))

    @property
    def required_lm_head(self) -> LMHead:
        """The head that writes."""
        if self.lm_head is None:
            raise ModelError("this model is an encoder: it reads and writes nothing. Take an objective with a head.")
        return self.lm_head

    def for_task(self, task: str) -> "TrainableModel":
        """The same model as one of several tasks sees it: with that task's heads alone."""
        mine = {name.removeprefix(f"{task}/"): x for name, x in self.heads.items() if name.startswith(f"{task}/")}
        return replace(self, heads=nn.ModuleDict(mine)) if task else self

    def head(self, name: str, hidden: Tensor) -> Tensor:
        return self.heads[name](hidden)

    @contextmanager
    def caching(self) -> Iterator[None]:
        """Inside, a batch runs through the body once, and all who ask share what it gave, its dropout and its graph."""
        was, self._cache = self._cache, {}
        try:
            yield
        finally:
            self._cache = was

    @contextmanager
    def embedding_as(self, change: Callable[[Tensor, Tensor], Tensor], batch: Batch) -> Iterator[None]:
        """Inside, the token embeddings of this batch are what `change` makes of them.

        Args:
            change: embeddings [..., T, D], and of each token the row it is in [T] -> embeddings.
        """
        lengths = torch.tensor(batch.lengths, device=batch.input_ids.device) + len(self.attachment.virtual_tokens())
        row = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
        module: Any = self.model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
        hook = module.register_forward_hook(lambda _, given, out: change(out, row))
        was, self._cache = self._cache, None if self._cache is None else {}
        try:
            with no_prefix_sharing():
                yield
        finally:
            hook.remove()
            self._cache = was

    @contextmanager
    def reference(self) -> Iterator["TrainableModel"]:
        """Inside, the model is the base model."""
        was, self._cache = self._cache, None
        try:
            with self.attachment.base():
                yield self
        finally:
            self._cache = was

    @contextmanager
    def as_base_model(self) -> Iterator["TrainableModel"]:
        """Inside, an untrained model is the base model, or what it goes on from. A soft prompt or a prefix begins at
        random and is not it; a method that changes the base weights themselves still is."""
        if self.attachment.set_enabled is None or self.warm_started:
            yield self
            return
        with self.reference() as base:
            yield base

    # -- writing ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        together: int = 32,
        streamer: Any = None,
        adapters: Sequence[str] = (),
        num_beams: int = 1,
        input_features: Tensor | None = None,
    ) -> list[list[int]]:
        """Answers to encoded prompts, in their order, without the stop token.

        Args:
            prompts: token ids, one list a prompt.
            temperature: 0 is greedy.
            together: prompts in one batch; those of like length are put together.
            adapters: the name of each prompt's adapter, "" for none, where there are several.
            beams: of a model of two halves, how many answers are followed at once (beam search).
            heard: [prompts, mels, 2 S] of a model that hears, and the prompts are what its decoder is told.
        """
        prompts = [self.prompted(x) for x in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: list[list[int]] = [[] for _ in prompts]
        with self.evaluating():
            for at in range(0, len(order), together):
                chosen = order[at : at + together]
                some: list[Sequence[int]] = [prompts[i] for i in chosen]
                with self.routed([adapters[i] for i in chosen] if adapters else ()):
                    if input_features is not None:
                        said = generate_from_audio(
                            self.model, some, input_features[chosen], self.stop_ids, max_new_tokens, num_beams
                        )
                        written = [self._until_stop(x) for x in said]
                    else:
                        written = self._write(some, max_new_tokens, temperature, top_p, streamer, num_beams)
                for i, answer in zip(chosen, written):
                    answers[i] = answer
        return answers

    def _write(
        self, prompts: list[Sequence[int]], room: int, temperature: float, top_p: float, streamer: Any, num_beams: int
    ) -> list[list[int]]:
        if self.architecture.kind == "encoder_decoder":
            written = generate_from_text(self.model, prompts, self.stop_ids, room, num_beams)
            return [self._until_stop(x) for x in written]
        wide = max(map(len, prompts))
        ids = torch.tensor([[self.stop_ids[0]] * (wide - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (wide - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
        out = self.model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=room,
            eos_token_id=list(self.stop_ids),
            pad_token_id=self.stop_ids[0],
            streamer=streamer,
            **({"do_sample": False} | sampling | ({"repetition_penalty": 1.0} if self.attachment.virtual_tokens() else {})),
        )
        return [self._until_stop(row) for row in out[:, wide:].tolist()]

    def _until_stop(self, ids: list[int]) -> list[int]:
        ends = [i for i, token in enumerate(ids) if token in self.stop_ids]
        return ids[: ends[0]] if ends else ids

    @torch.no_grad()
    def score_options(
        self, prompts: Sequence[Sequence[int]], options: Sequence[Sequence[int]], known: "PrefixCache"
    ) -> list[list[float]]:
        """Summed log-probability of each option after each prompt, [prompts][options].

        What all prompts begin with is in `known` and is not run again; the rest of each prompt runs once; then all
        options of all prompts run as one batch on its keys and values.
        """
        many, each, wide = len(prompts), len(options), max(len(p) for p in prompts) - known.length
        rest, real = right_padded([p[known.length :] for p in prompts], wide, self.device)  # [P, S]
        cache = known.copy(many)
        seen = torch.cat([real.new_ones(many, known.length), real], 1)  # [P, prefix + S]
        at = known.length + torch.arange(wide, device=self.device).expand(many, -1)
        ends = real.sum(1) - 1  # [P]
        out = self.model(
            input_ids=rest,
            attention_mask=seen,
            position_ids=at,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.unique(ends),
        )
        row = torch.searchsorted(torch.unique(ends), ends)
        start = out.logits[torch.arange(many), row].float().log_softmax(-1)  # [P, V]
        firsts = torch.tensor([option[0] for option in options], device=self.device)
        sums = start[:, firsts]  # [P, K]
        longest = max(map(len, options)) - 1
        if longest:
            cache = out.past_key_values
            cache.batch_repeat_interleave(each)
            ids, _ = right_padded([o[:-1] for o in options], longest, self.device)
            targets, kept = right_padded([o[1:] for o in options], longest, self.device)  # [K, L]
            mask = torch.cat([seen.repeat_interleave(each, 0), seen.new_ones(many * each, longest)], 1)
            at = (known.length + ends + 1).repeat_interleave(each)[:, None] + torch.arange(longest, device=self.device)
            after = self.model(
                input_ids=ids.repeat(many, 1), attention_mask=mask, position_ids=at, past_key_values=cache, use_cache=True
            ).logits
            later = after.float().log_softmax(-1).gather(2, targets.repeat(many, 1)[..., None])[..., 0]  # [P K, L]
            sums = sums + (later.unflatten(0, (many, each)) * kept).sum(-1)
        return sums.tolist()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off, and the random generators afterwards as before: measuring never changes a run."""
        was = self.model.training
        self.model.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                yield
        finally:
            self.model.train(was)


@dataclass
class PrefixCache:
    """The keys and values of a prefix that many prompts share."""

    length: int
    cache: Any

    def copy(self, rows: int) -> Any:
        """For a batch of so many rows; the original stays as it is."""
        if self.cache is None:
            return None
        copied = copy.deepcopy(self.cache)
        copied.batch_repeat_interleave(rows)
        return copied


def identity_of(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Sixteen letters of a hash over names, shapes and checksums of all weights, rounded to `dtype` if one is given."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        weight = weight.detach() if dtype is None else weight.detach().to(dtype)
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {checksum(weight)}".encode())
    return digest.hexdigest()[:16]


def checksum(weight: Tensor) -> int:
    """The sum of a weight's bits, read as whole numbers."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    parts = weight.detach().contiguous().view(whole).flatten().split(2**22)  # of all at once torch makes an int64 copy
    return int(torch.stack([part.sum(dtype=torch.int64) for part in parts]).sum()) if weight.numel() else 0


def layer_of(name: str) -> int | None:
    """Which layer a weight belongs to, by its name.

    >>> layer_of("model.layers.3.self_attn.q_proj.weight"), layer_of("lm_head.weight")
    (3, None)
    """
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None
