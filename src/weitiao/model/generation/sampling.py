"""The choice of the next tokens, of many rows at once: the sampling law of core/engine.py.

logits [R, V] --+-- log softmax ------------------------------------------------> log-probabilities that are reported
                +-- bias, penalties, grammar -- softmax(z / T) -- top-k, top-p, min-p -- the token

Every step works on each row alone, and a row's random number follows from its seed, its index and the token's number, so
no choice depends on the other rows of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from weitiao.core.engine import GeneratedToken, SamplingParams
from weitiao.model.generation.constraint import TokenConstraint
from weitiao.model.generation.random_stream import uniform

CANDIDATES = 256  # most probable tokens that are sorted; all are, where these do not reach top_p


@dataclass
class SamplingState:
    """What the choice of a row's next token depends on besides its logits."""

    params: SamplingParams
    seed: int
    index: int
    prompt_ids: Sequence[int]
    constraint: TokenConstraint | None = None
    num_tokens: int = 0
    """Tokens of the answer so far."""
    _counts: Tensor | None = field(default=None, repr=False)
    _seen: Tensor | None = field(default=None, repr=False)

    @property
    def has_penalty(self) -> bool:
        p = self.params
        return p.repetition_penalty != 1.0 or p.frequency_penalty != 0.0 or p.presence_penalty != 0.0

    @property
    def is_plain(self) -> bool:
        """Whether the choice is by the logits as they are."""
        return not (self.has_penalty or self.params.logit_bias or self.constraint is not None)

    def counts(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(how often each token is in the answer, whether it is in the prompt or the answer): [V] each."""
        if self._counts is None or self._seen is None:
            self._counts = torch.zeros(logits.shape[-1], device=logits.device)
            ids = torch.tensor([x for x in self.prompt_ids if x < logits.shape[-1]], device=logits.device, dtype=torch.long)
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device).index_fill_(0, ids, True)
        return self._counts, self._seen

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self.num_tokens += 1
        if self._counts is not None and self._seen is not None:
            self._counts[token] += 1
            self._seen[token] = True
        if self.constraint is not None:
            self.constraint.accept(token)


def sample(logits: Tensor, rows: Sequence[SamplingState]) -> list[GeneratedToken]:
    """The next token of each row, with the log-probabilities that its parameters ask for.

    Args:
        logits: [R, V] fp32.
    """
    z = adjusted(logits, rows)
    tokens = z.argmax(-1).tolist()  # the lowest id of equals
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if drawn:
        chosen = draw(z if len(drawn) == len(rows) else z[drawn], [rows[i] for i in drawn])
        for i, token in zip(drawn, chosen):
            tokens[i] = token
    return _with_logprobs(logits, rows, tokens)


def adjusted(logits: Tensor, rows: Sequence[SamplingState]) -> Tensor:
    """The logits with bias, penalties and grammar; the same tensor where no row has any."""
    if all(row.is_plain for row in rows):
        return logits
    z = logits.clone()
    for i, row in enumerate(rows):
        if row.params.logit_bias:
            ids = torch.tensor(list(row.params.logit_bias), device=z.device)
            z[i, ids] += torch.tensor(list(row.params.logit_bias.values()), device=z.device, dtype=z.dtype)
    penalized = [i for i, row in enumerate(rows) if row.has_penalty]
    if penalized:
        z[penalized] = _penalized(z[penalized], [rows[i] for i in penalized])
    for i, row in enumerate(rows):
        if row.constraint is not None:
            allowed = row.constraint.allowed().to(z.device)
            width = min(len(allowed), z.shape[1])  # the vocabulary may be padded in the model
            z[i, :width].masked_fill_(~allowed[:width], float("-inf"))
            z[i, width:] = float("-inf")
    return z


def _penalized(z: Tensor, rows: Sequence[SamplingState]) -> Tensor:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=z.device, dtype=z.dtype)[:, None]

    counts, seen = (torch.stack(x) for x in zip(*(row.counts(z) for row in rows)))  # [R, V]
    repetition = column([row.params.repetition_penalty for row in rows])
    z = torch.where(seen, torch.where(z > 0, z / repetition, z * repetition), z)
    frequency, presence = ([getattr(row.params, f"{x}_penalty") for row in rows] for x in ("frequency", "presence"))
    return z - column(frequency) * counts - column(presence) * (counts > 0)


def draw(z: Tensor, rows: Sequence[SamplingState]) -> list[int]:
    """A random token of each row, by its temperature and what top-k, top-p and min-p keep."""
    temperature = torch.tensor([row.params.temperature for row in rows], device=z.device, dtype=z.dtype)
    p = (z / temperature[:, None]).softmax(-1)  # [R, V]
    u = uniform([row.seed for row in rows], [row.index for row in rows], [row.num_tokens for row in rows])
    sorted_rows = [i for i, row in enumerate(rows) if row.params.top_k or row.params.top_p < 1.0]
    tokens = dict(zip(sorted_rows, _draw_sorted(p, [(i, rows[i].params) for i in sorted_rows], u)))
    rest = [i for i in range(len(rows)) if i not in tokens]
    if rest:
        remaining = p if len(rest) == len(rows) else p[rest]
        min_p = torch.tensor([rows[i].params.min_p for i in rest], device=p.device, dtype=p.dtype)[:, None]
        if bool(min_p.any()):
            remaining = remaining.masked_fill(remaining < min_p * remaining.amax(-1, keepdim=True), 0.0)
        total = remaining.double().cumsum(-1)
        goal = torch.from_numpy(u[rest]).to(p.device)[:, None] * total[:, -1:]
        tokens |= dict(zip(rest, _first_above(total, goal).tolist()))
    return [tokens[i] for i in range(len(rows))]


def _first_above(total: Tensor, goal: Tensor) -> Tensor:
    """[R]: the first place where the running total [R, V] exceeds the goal [R, 1]; never one of probability 0."""
    place = torch.searchsorted(total, goal, right=True)
    last = torch.searchsorted(total, total[:, -1:].contiguous())  # the last token that adds anything
    return torch.minimum(place, last)[:, 0]


def _draw_sorted(p: Tensor, rows: Sequence[tuple[int, SamplingParams]], u: np.ndarray) -> list[int]:
    """For rows of which only the most probable tokens are kept: (row of p, its parameters) -> token."""
    if not rows:
        return []
    some = p[[i for i, _ in rows]]
    count = min(p.shape[1], max(CANDIDATES, *(params.top_k for _, params in rows), 1))
    smallest = some.topk(count, -1).values[:, -1]
    tokens = []
    for (i, params), probabilities, threshold in zip(rows, some, smallest):
        remaining, ids = _kept(probabilities, params, float(threshold))
        total = remaining.cumsum()
        place = min(int(np.searchsorted(total, u[i] * total[-1], side="right")), len(ids) - 1)
        tokens.append(int(ids[place]))
    return tokens


def _kept(p: Tensor, params: SamplingParams, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """What top-k, top-p and min-p keep of one row [V]: probabilities in fp64, largest first, and their tokens."""
    candidates = (p >= threshold).nonzero()[:, 0]  # all equals of the last one too, so that no choice is arbitrary
    values = p[candidates].double().cpu().numpy()
    order = np.argsort(-values, kind="stable")  # of equals, the lowest id first
    values, ids = values[order], candidates.cpu().numpy()[order]
    if params.top_k:
        values, ids = values[: params.top_k], ids[: params.top_k]
    if params.top_p < 1.0:
        total = values.cumsum()
        reached = int(np.searchsorted(total, params.top_p)) + 1
        if reached > len(values) and not params.top_k and threshold > 0:
            return _kept(p, params, 0.0)
        values, ids = values[:reached], ids[:reached]
    keep = values >= max(params.min_p * values[0], np.finfo(np.float64).tiny)
    return values[keep], ids[keep]


def _with_logprobs(logits: Tensor, rows: Sequence[SamplingState], tokens: Sequence[int]) -> list[GeneratedToken]:
    asked = [i for i, row in enumerate(rows) if row.params.top_logprobs is not None]
    chosen = [GeneratedToken(token) for token in tokens]
    if not asked:
        return chosen
    logprobs = (logits if len(asked) == len(rows) else logits[asked]).log_softmax(-1)
    most = max(rows[i].params.top_logprobs or 0 for i in asked)
    top = logprobs.topk(min(most, logprobs.shape[1]), -1)
    own = logprobs.gather(1, torch.tensor([[tokens[i]] for i in asked], device=logprobs.device))[:, 0].tolist()
    for i, logprob, ids, values in zip(asked, own, top.indices.tolist(), top.values.tolist()):
        count = rows[i].params.top_logprobs or 0
        chosen[i] = GeneratedToken(tokens[i], logprob, tuple(zip(ids, values))[:count])
    return chosen
