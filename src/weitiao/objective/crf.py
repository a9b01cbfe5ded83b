"""A linear-chain CRF: the probability of a whole sequence of tags, and the best sequence.

Lafferty, McCallum & Pereira 2001, "Conditional Random Fields", sec. 3; Sutton & McCallum 2012, sec. 2.3 and 4.1:

    score(y) = start[y_1] + sum_u e[u, y_u] + sum_u T[y_u, y_{u+1}] + end[y_U]            log p(y) = score(y) - log Z
    a_1 = start + e_1    a_{u+1}[j] = e_{u+1}[j] + logsumexp_i(a_u[i] + T[i, j])    log Z = logsumexp_j(a_U[j] + end[j])

    e [B, U, C]     a row          o--o--o--o          U units of the longest row, C tags
                    a shorter one  o--o  .  .          padding after its end is never read

Viterbi (1967) is the same with max for logsumexp. Tags that may not follow one another have a score that no sum of
others can outweigh. A row that is a window of a longer text may start and end with any tag: `with_open_ends`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from weitiao.core.bio_tags import Scheme, can_end, can_follow, can_start

FORBIDDEN = -1e30  # finite, so that no gradient is 0 times infinity; exp of it is 0


@dataclass(frozen=True)
class Chain:
    """The scores of tags that do not depend on the text."""

    start: Tensor  # [C], or [B, C]
    transitions: Tensor  # [C, C]: from, to
    end: Tensor  # [C], or [B, C]

    def cpu(self) -> "Chain":
        return Chain(*(x.detach().float().cpu() for x in (self.start, self.transitions, self.end)))


class ChainScores(nn.Module):
    """The trained scores of a CRF."""

    def __init__(self, rules: Chain) -> None:
        """`rules`: 0 where a tag is allowed, FORBIDDEN where it is not."""
        super().__init__()
        num_tags = len(rules.start)
        self.start = nn.Parameter(torch.zeros(num_tags))
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        self.end = nn.Parameter(torch.zeros(num_tags))
        for name in ("start", "transitions", "end"):
            self.register_buffer(f"no_{name}", getattr(rules, name) < 0, persistent=False)

    def forward(self) -> Chain:
        names = ("start", "transitions", "end")
        return Chain(*(getattr(self, x).masked_fill(getattr(self, f"no_{x}"), FORBIDDEN) for x in names))


@cache
def scheme_rules(tags: tuple[str, ...], scheme: Scheme) -> Chain:
    """Which tags may start, follow one another and end: 0 or FORBIDDEN."""

    def scores(allowed: Sequence[bool] | Sequence[Sequence[bool]]) -> Tensor:
        return torch.where(torch.tensor(allowed), 0.0, FORBIDDEN)

    return Chain(
        scores([can_start(x) for x in tags]),
        scores([[can_follow(x, before, scheme) for x in tags] for before in tags]),
        scores([can_end(x, scheme) for x in tags]),
    )


def with_open_ends(chain: Chain, starts: Tensor, ends: Tensor) -> Chain:
    """The chain for rows of which some start or end in the middle of a text: there any tag is allowed, at score 0.

    Args:
        starts, ends: [B] bool, True where the row starts or ends as a text does.
    """
    start = torch.where(starts[:, None], chain.start, 0.0)
    return Chain(start, chain.transitions, torch.where(ends[:, None], chain.end, 0.0))


def forward_scores(emissions: Tensor, start: Tensor, transitions: Tensor) -> Tensor:
    """[U, B, C]: log of the summed weights of all prefixes that end in a tag, its own emission included."""
    first, *others = emissions.unbind(1)
    scores = [start + first]
    for emission in others:
        scores.append((scores[-1][:, :, None] + transitions).logsumexp(1) + emission)
    return torch.stack(scores)


def log_partition(emissions: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[B]: log Z.

    Args:
        emissions: [B, U, C].
        lengths: [B], each at least 1.
    """
    last = forward_scores(emissions, chain.start, chain.transitions)[lengths - 1, torch.arange(len(lengths))]  # [B, C]
    return (last + chain.end).logsumexp(1)


def path_score(emissions: Tensor, tags: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[B]: the scores of the paths.

    Args:
        tags: [B, U]; any valid tag as padding.
    """
    rows, units = torch.arange(len(tags), device=tags.device), torch.arange(tags.shape[1], device=tags.device)
    real = units < lengths[:, None]  # [B, U]
    emitted = (emissions.gather(2, tags[:, :, None])[:, :, 0] * real).sum(1)
    moved = (chain.transitions[tags[:, :-1], tags[:, 1:]] * real[:, 1:]).sum(1)
    start, end = chain.start.expand(len(tags), -1), chain.end.expand(len(tags), -1)
    return emitted + moved + start[rows, tags[:, 0]] + end[rows, tags[rows, lengths - 1]]


def log_likelihood(emissions: Tensor, tags: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[B]: log p of the paths."""
    return path_score(emissions, tags, lengths, chain) - log_partition(emissions, lengths, chain)


@torch.no_grad()
def viterbi(emissions: Tensor, lengths: Tensor, chain: Chain) -> list[list[int]]:
    """The best path of each row."""
    first, *others = emissions.unbind(1)
    best, came_from = [chain.start + first], []
    for emission in others:
        scores, previous = (best[-1][:, :, None] + chain.transitions).max(1)  # [B, C]
        best.append(scores + emission)
        came_from.append(previous)
    rows = torch.arange(len(lengths), device=emissions.device)
    last = (torch.stack(best)[lengths - 1, rows] + chain.end).argmax(1)  # [B]: the tag of each row's last unit
    path = [last]
    for u in range(len(came_from) - 1, -1, -1):
        before = came_from[u].gather(1, path[-1][:, None])[:, 0]
        path.append(torch.where(u + 1 < lengths, before, last))  # a shorter row waits at its end
    paths = torch.stack(path[::-1], 1).tolist()  # [B, U]
    return [row[:length] for row, length in zip(paths, lengths.tolist())]


@torch.no_grad()
def span_logprobs(emissions: Tensor, chain: Chain, path: Tensor, spans: list[tuple[int, int]]) -> list[float]:
    """For one row, the log-probability that the units of each span have the tags of the path, whatever the others have.

    Args:
        emissions: [U, C].
        path: [U].
        spans: (first unit, unit after the last).
    """
    if not spans:
        return []
    prefix = forward_scores(emissions[None], chain.start, chain.transitions)[:, 0]  # [U, C]
    reverse = forward_scores(emissions[None].flip(1), chain.end, chain.transitions.T)[:, 0].flip(0)
    suffix = reverse - emissions  # [U, C], the unit's own emission left out
    log_z = (prefix[-1] + chain.end).logsumexp(0)
    own = emissions.gather(1, path[:, None])[:, 0]  # [U]
    steps = torch.cat([own[:1] * 0, own[1:] + chain.transitions[path[:-1], path[1:]]]).double().cumsum(0)  # [U]
    first, end = torch.tensor(spans).T
    last = end - 1
    logprobs = prefix[first, path[first]] + (steps[last] - steps[first]) + suffix[last, path[last]] - log_z
    return logprobs.clamp(max=0).tolist()
