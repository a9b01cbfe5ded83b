"""TunableModel: the one handle that an objective has on the model, and the place where speed lives."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from weitiao.core.batch import IGNORE, Batch
from weitiao.core.method import Attachment
from weitiao.core.processor import Processor
from weitiao.core.vocabulary_head import VocabularyHead


@dataclass
class TunableModel:
    """A base model with its method attached and the objective's heads beside it."""

    model: nn.Module
    """The transformers model, method attached in place."""
    attachment: Attachment
    processor: Processor
    """Words to token ids and back."""
    body: Callable[[Batch], Tensor]
    """Batch -> last hidden states [T, D], after the final norm."""
    vocabulary: VocabularyHead
    """Hidden states -> log-probabilities of tokens."""
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    gather: Callable[[Tensor], Tensor] = lambda x: x
    """All machines' rows of a tensor; on one machine, the tensor."""

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self.processor.stop_ids

    def trainable(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name: the attachment's parameters and the heads' ('head.<name>...')."""
        here = dict(self.model.named_parameters())
        heads = {f"head.{name}": p for name, p in self.heads.named_parameters()}
        return {**{name: here[name] for name in sorted(self.attachment.trainable)}, **heads}

    def buffers(self) -> dict[str, Tensor]:
        """What else is saved, by name."""
        here = dict(self.model.named_buffers())
        return {name: here[name] for name in sorted(self.attachment.buffers)}

    # -- what objectives call -----------------------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Tensor:
        """[T, D]: the last hidden states."""
        return self.body(batch)

    def logprobs(self, batch: Batch) -> Tensor:
        """[N] fp32: the log-probability of every supervised target, in the order of the batch. Never [T, V]."""
        supervised = (batch.labels != IGNORE).nonzero()[:, 0]  # [N]
        return self.vocabulary.logprobs(self.hidden(batch)[supervised], batch.labels[supervised])

    def nll_by_segment(self, batch: Batch) -> list[tuple[float, float]]:
        """(summed negative log-probability, supervised tokens) of each segment."""
        counts = [int((batch.labels[a:b] != IGNORE).sum()) for a, b in zip(batch.bounds, batch.bounds[1:])]
        parts = (-self.logprobs(batch)).split(counts)
        return [(float(part.sum()), float(count)) for part, count in zip(parts, counts)]

    def logits(self, batch: Batch) -> Tensor:
        """[T, V] fp32, for those who really need all of it."""
        return self.vocabulary.logits(self.hidden(batch))

    def head(self, name: str, hidden: Tensor) -> Tensor:
        return self.heads[name](hidden)

    @contextmanager
    def reference(self) -> Iterator["TunableModel"]:
        """Inside, the model is the base model."""
        with self.attachment.base():
            yield self

    # -- writing ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        together: int = 8,
        streamer: Any = None,
    ) -> list[list[int]]:
        """Answers to encoded prompts, in their order, without the stop token.

        Args:
            prompts: token ids, one list a prompt.
            temperature: 0 is greedy.
            together: prompts in one batch; those of like length are put together.
        """
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        answers: list[list[int]] = [[] for _ in prompts]
        with self.evaluating():
            for at in range(0, len(order), together):
                chosen = order[at : at + together]
                for i, answer in zip(
                    chosen,
                    self._write([prompts[i] for i in chosen], max_new_tokens, temperature, top_p, streamer),
                ):
                    answers[i] = answer
        return answers

    def _write(self, prompts: list[Sequence[int]], room: int, temperature: float, top_p: float, streamer: Any):
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
            **({"do_sample": False} | sampling),
        )
        for row in out[:, wide:].tolist():
            ends = [i for i, token in enumerate(row) if token in self.stop_ids]
            yield row[: ends[0]] if ends else row

    @torch.no_grad()
    def score_options(self, prompt: Sequence[int], options: Sequence[Sequence[int]], known: "Known") -> list[float]:
        """Summed log-probability of each option after the prompt; `known` keeps what prompts have in common.

        The prompt runs once, from where it leaves the common prefix on; then all options run as one small batch.
        """
        cache = known.copy()
        rest = torch.tensor([list(prompt[known.length :])], device=self.device)
        first = self.model(input_ids=rest, past_key_values=cache, use_cache=True, logits_to_keep=1)
        start = first.logits[0, -1].float().log_softmax(-1)  # [V]
        sums = [float(start[option[0]]) for option in options]
        longest = max(map(len, options))
        if longest == 1:
            return sums
        cache = first.past_key_values
        cache.batch_repeat_interleave(len(options))
        ids = torch.tensor([list(o[:-1]) + [o[-1]] * (longest - len(o)) for o in options], device=self.device)
        logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True).logits.float()
        after = logits.log_softmax(-1)  # [K, longest - 1, V]
        for k, option in enumerate(options):
            sums[k] += sum(float(after[k, t - 1, option[t]]) for t in range(1, len(option)))
        return sums

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
class Known:
    """The keys and values of a prefix that many prompts share."""

    length: int
    cache: Any

    def copy(self) -> Any:
        return copy.deepcopy(self.cache)
