"""An Engine over transformers' own forward pass: one row and one token at a time, each row with a cache of its own."""

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from weitiao.core.engine import EngineLoad, GeneratedToken, Generation, Request, SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.generation import num_positions
from weitiao.core.trainable_model import TrainableModel

DEFAULT_LENGTH = 2048


@dataclass
class _Row:
    generation: Generation
    seed: int
    cache: Any = None
    ids: list[int] = field(default_factory=list)


@dataclass
class OneTokenEngine:
    """Generates for up to `slots` rows in turn."""

    model: TrainableModel
    slots: int = 8
    max_length: int = DEFAULT_LENGTH
    running: list[_Row] = field(default_factory=list)
    waiting: list[_Row] = field(default_factory=list)

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(len(self.running), len(self.waiting), self.slots)

    def submit(self, request: Request) -> Generation:
        limit = min(self.max_length, num_positions(self.model) or self.max_length)
        if len(request.prompt_ids) >= limit:
            raise DataError(
                "a prompt has {n:,} tokens, but the base takes {limit:,} with its answer: shorten the prompt",
                n=len(request.prompt_ids),
                limit=limit,
            )
        if request.sampling.grammar is not None:
            raise DataError("constrained output needs weitiao[json]")
        generation = Generation(request)
        seed = request.sampling.seed if request.sampling.seed is not None else random.getrandbits(62)
        self.waiting.append(_Row(generation, seed, ids=list(request.prompt_ids)))
        return generation

    def cancel(self, generation: Generation) -> None:
        generation.finish_reason = generation.finish_reason or "cancelled"

    @torch.no_grad()
    def step(self) -> list[Generation]:
        ended = [x for x in (*self.running, *self.waiting) if x.generation.is_finished]
        self.running = [x for x in self.running if not x.generation.is_finished]
        self.waiting = [x for x in self.waiting if not x.generation.is_finished]
        while self.waiting and len(self.running) < self.slots:
            self.running.append(self.waiting.pop(0))
        self.model.model.eval()
        for row in self.running:
            self._advance(row)
        return [x.generation for x in itertools.chain(ended, self.running)]

    def _advance(self, row: _Row) -> None:
        generation, request = row.generation, row.generation.request
        new = row.ids if row.cache is None else row.ids[-1:]
        names = [request.adapter] if self.model.attachment.select_adapter else ()
        module: Any = self.model.model
        with self.model.attachment.adapters_by_row(names):
            out = module(
                input_ids=torch.tensor([new], device=self.model.device), past_key_values=row.cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        row.cache = out.past_key_values
        logits = out.logits[0, -1].float()
        sampling = request.sampling
        token = choose(logits.clone(), sampling, request.prompt_ids, generation.token_ids, row.seed, request.index)
        if token in self.model.processor.stop_ids and not sampling.ignore_eos:
            generation.text = self.model.processor.decode(generation.token_ids)
            generation.finish_reason = "stop"
            return
        generation.tokens.append(_reported(logits, token, sampling.top_logprobs))
        row.ids.append(token)
        self._decode(generation)
        full = len(row.ids) >= self.max_length or len(generation.tokens) >= sampling.max_new_tokens
        if full and not generation.is_finished:
            generation.text, generation.finish_reason = self.model.processor.decode(generation.token_ids), "length"

    def _decode(self, generation: Generation) -> None:
        text, stops = self.model.processor.decode(generation.token_ids), generation.request.sampling.stop
        at = min((i for i in map(text.find, stops) if i >= 0), default=None)
        if at is not None:
            generation.text, generation.finish_reason = text[:at], "stop"
            return
        text = text.rstrip("\ufffd")
        held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        generation.text = text[: len(text) - held]


def _reported(logits: Tensor, token: int, top: int | None) -> GeneratedToken:
    if top is None:
        return GeneratedToken(token)
    log_probs = logits.log_softmax(-1)
    values, ids = log_probs.topk(top)
    return GeneratedToken(token, float(log_probs[token]), tuple(zip(ids.tolist(), values.tolist())))


def choose(z: Tensor, sampling: SamplingParams, prompt: Any, answer: list[int], seed: int, index: int) -> int:
    """The next token, by the sampling law of core/engine.py."""
    for token, bias in sampling.logit_bias.items():
        z[token] += bias
    if sampling.repetition_penalty != 1:
        seen_ids = torch.tensor(sorted({*prompt, *answer}))
        values = z[seen_ids]
        z[seen_ids] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    for token in set(answer):
        z[token] -= sampling.frequency_penalty * answer.count(token) + sampling.presence_penalty
    if sampling.temperature == 0:
        return int(z.argmax())
    p = (z / sampling.temperature).softmax(-1)
    values, ids = p.sort(descending=True, stable=True)
    keep = torch.ones_like(values, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
    keep &= values.cumsum(0) - values < sampling.top_p
    keep &= values >= sampling.min_p * values[0]
    keep[0] = True
    values = values * keep
    draw = random.Random(f"{seed} {index} {len(answer)}").random() * float(values.sum())
    at = int(torch.searchsorted(values.cumsum(0), torch.tensor(draw), right=True))
    return int(ids[min(at, int(keep.nonzero()[-1]))])
