"""The log-probabilities of continuations after prompts: what an exam's options and lm-evaluation-harness ask for.

    prompt    The capital of France is          shared by its continuations, run once
    options   Paris | Rome | Berlin             each token's log-probability is summed

Rows that begin alike share their first tokens (core/shared_prefix.py), and logits are made where a token is scored only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weitiao.core.batch import IGNORE, Row, pack
from weitiao.core.lm_head import MAX_LOGITS
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel, evaluating

BATCH_TOKENS = 4096  # of the rows of a batch, shared ones once
Progress = Callable[[Sequence[Any], Any], Any]


@dataclass(frozen=True)
class Prompt:
    """Token ids, and those of its continuations."""

    ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt with its longest continuation; the last one is only predicted."""
        return len(self.ids) + max(map(len, self.continuations)) - 1


@dataclass(frozen=True)
class Scored:
    """A continuation's log-probability."""

    logprob: float
    is_greedy: bool
    """Whether each of its tokens is the most probable one."""


def encode_prompt(processor: Processor, context: str, continuations: Sequence[str]) -> Prompt:
    """A context with its continuations, tokenized together, and cut where the context's own tokens end.

    (As lm-evaluation-harness does, with the spaces at the context's end moved to the continuation; the beginning-of-text
    token is the tokenizer's.) Where that leaves a continuation nothing, tokens of the context are scored with it.
    """
    stripped = context.rstrip()
    moved = context[len(stripped) :]
    ids = encode_text(processor, stripped) if stripped else [_first_token(processor)]
    wholes = [encode_text(processor, stripped + moved + x) for x in continuations]
    if not stripped:
        wholes = [x if x[:1] == ids else [*ids, *x] for x in wholes]
    length = min(len(ids), *(len(x) - 1 for x in wholes))
    return Prompt(tuple(ids[:length]), tuple(tuple(x[length:]) for x in wholes))


def encode_text(processor: Processor, text: str) -> list[int]:
    """A text that goes on: without the end-of-text token that some tokenizers add."""
    ids = processor.text(text)
    return ids[:-1] if len(ids) > 1 and ids[-1] == processor.eos_id else ids


def _first_token(processor: Processor) -> int:
    """What stands before an empty context: the beginning-of-text token, or else the end-of-text token."""
    return next(iter(processor.special_tokens.first), processor.eos_id)


def score_prompts(
    model: TrainableModel, prompts: Sequence[Prompt], progress: Progress = lambda x, _: x, label: Any = ""
) -> Iterator[tuple[int, list[Scored]]]:
    """(index, the score of each continuation) of every prompt, batch by batch; of a decoder."""
    with evaluating(model), torch.no_grad():
        for batch in progress(_batches(prompts), label):
            yield from zip(batch, _score_batch(model, [prompts[i] for i in batch]))


def _batches(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts of similar length; a batch has about BATCH_TOKENS tokens beside the prefix that all share."""
    shared = _shared_length([x.ids for x in prompts])
    batches: list[list[int]] = []
    tokens = 0
    for i in sorted(range(len(prompts)), key=lambda i: prompts[i].length):
        own = len(prompts[i].ids) - shared + sum(len(x) - 1 for x in prompts[i].continuations)
        if not batches or tokens + own > BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(i)
        tokens += own
    return batches


def _shared_length(rows: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all rows begin with."""
    if not rows:
        return 0
    first, last = min(rows), max(rows)  # in the order of lists, these two differ first
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


def _score_batch(model: TrainableModel, prompts: Sequence[Prompt]) -> list[list[Scored]]:
    rows: dict[tuple[int, ...], int] = {}  # the inputs, each once: options of one token share their prompt's
    targets: dict[tuple[int, int], list[tuple[int, int, int]]] = {}  # (row, position) -> (prompt, option, token)
    for p, prompt in enumerate(prompts):
        first = None
        for k, continuation in enumerate(prompt.continuations):
            row = rows.setdefault((*prompt.ids, *continuation[:-1]), len(rows))
            first = row if first is None else first  # the token before all options is in each of their rows
            for j, token in enumerate(continuation):
                position = len(prompt.ids) - 1 + j
                targets.setdefault((row if j else first, position), []).append((p, k, token))
    batch = pack([Row(input_ids=x, labels=[IGNORE] * len(x)) for x in rows]).to(model.device)
    starts = dict(zip(batch.row_ids, batch.bounds))
    ordered = sorted(targets, key=lambda place: starts[place[0]] + place[1])
    positions = torch.tensor([starts[row] + i for row, i in ordered], device=model.device)
    hidden = model.hidden(batch, positions)
    sums = [[0.0] * len(x.continuations) for x in prompts]
    greedy = [[True] * len(x.continuations) for x in prompts]
    for (p, k), logprob, is_greedy in _token_scores(model, hidden, [targets[x] for x in ordered]):
        sums[p][k] += logprob
        greedy[p][k] &= is_greedy
    return [[Scored(*x) for x in zip(*pair)] for pair in zip(sums, greedy)]


def _token_scores(
    model: TrainableModel, hidden: Tensor, targets: Sequence[Sequence[tuple[int, int, int]]]
) -> Iterator[tuple[tuple[int, int], float, bool]]:
    """((prompt, option), log-probability, whether it is the most probable) of each token.

    Args:
        hidden: [N, D]
        targets: of each of the N positions, the tokens that are scored there.
    """
    size = max(1, MAX_LOGITS // len(model.lm_head.weight()))
    for start in range(0, len(targets), size):
        logits = model.lm_head.logits(hidden[start : start + size])  # [n, V]
        part = [(row, *x) for row, tokens in enumerate(targets[start : start + size]) for x in tokens]
        rows, tokens = torch.tensor([x[0] for x in part]), torch.tensor([x[3] for x in part])
        log_sum, best = logits.logsumexp(-1), logits.argmax(-1)
        logprobs = (logits[rows, tokens] - log_sum[rows]).tolist()
        for (row, p, k, token), logprob in zip(part, logprobs):
            yield (p, k), logprob, int(best[row]) == token
