"""A linear-chain CRF: the probability of a whole sequence of tags, and the best one.

Lafferty, McCallum & Pereira 2001, "Conditional Random Fields", sec. 3; Sutton & McCallum 2012, sec. 2.3 and 4.1:

    score(y) = start[y_1] + sum_u e[u, y_u] + sum_u T[y_u, y_{u+1}] + end[y_U]            log p(y) = score(y) - log Z
    a_1 = start + e_1    a_{u+1}[j] = e_{u+1}[j] + logsumexp_i(a_u[i] + T[i, j])    log Z = logsumexp_j(a_U[j] + end[j])

    e [B, U, C]     a row          o--o--o--o          U units of the longest row, C tags
                    a shorter one  o--o  .  .          what stands behind its end is never read

Viterbi (1967) is the same with max for logsumexp. Tags that may not follow one another have a score that no sum of
others makes up for. A row that is the middle of a longer text (a window) begins and ends anywhere: `open`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

FORBIDDEN = -1e30  # finite, so that no gradient is 0 times infinity; exp of it is 0


@dataclass(frozen=True)
class Chain:
    """What tags score beside their units."""

    start: Tensor  # [C], or [B, C]
    follow: Tensor  # [C, C]: from, to
    end: Tensor  # [C], or [B, C]

    def cpu(self) -> "Chain":
        return Chain(*(x.detach().float().cpu() for x in (self.start, self.follow, self.end)))


class ChainScores(nn.Module):
    """The trained scores of a CRF."""

    def __init__(self, rules: Chain) -> None:
        """`rules`: 0 where a tag may stand, FORBIDDEN where not."""
        super().__init__()
        tags = len(rules.start)
        self.start = nn.Parameter(torch.zeros(tags))
        self.follow = nn.Parameter(torch.zeros(tags, tags))
        self.end = nn.Parameter(torch.zeros(tags))
        for name in ("start", "follow", "end"):
            self.register_buffer(f"no_{name}", getattr(rules, name) < 0, persistent=False)

    def forward(self) -> Chain:
        kept = (getattr(self, x).masked_fill(getattr(self, f"no_{x}"), FORBIDDEN) for x in ("start", "follow", "end"))
        return Chain(*kept)


def opened(chain: Chain, begins: Tensor, ends: Tensor) -> Chain:
    """The chain for rows of which some begin or end in the middle of a text: there any tag may stand, at no score.

    Args:
        begins, ends: [B] bool, True where the row begins or ends as a text does.
    """
    start = torch.where(begins[:, None], chain.start, 0.0)
    return Chain(start, chain.follow, torch.where(ends[:, None], chain.end, 0.0))


def forward_scores(emissions: Tensor, start: Tensor, follow: Tensor) -> Tensor:
    """[U, B, C]: log of the summed weights of all beginnings that end in a tag, its own emission included."""
    first, *others = emissions.unbind(1)
    found = [start + first]
    for now in others:
        found.append((found[-1][:, :, None] + follow).logsumexp(1) + now)
    return torch.stack(found)


def log_partition(emissions: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[B]: log Z.

    Args:
        emissions: [B, U, C].
        lengths: [B], each at least 1.
    """
    last = forward_scores(emissions, chain.start, chain.follow)[lengths - 1, torch.arange(len(lengths))]  # [B, C]
    return (last + chain.end).logsumexp(1)


def path_score(emissions: Tensor, tags: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[B]: what the paths score.

    Args:
        tags: [B, U]; anything (in range) behind a row's end.
    """
    rows, units = torch.arange(len(tags), device=tags.device), torch.arange(tags.shape[1], device=tags.device)
    there = units < lengths[:, None]  # [B, U]
    said = (emissions.gather(2, tags[:, :, None])[:, :, 0] * there).sum(1)
    followed = (chain.follow[tags[:, :-1], tags[:, 1:]] * there[:, 1:]).sum(1)
    start, end = chain.start.expand(len(tags), -1), chain.end.expand(len(tags), -1)
    return said + followed + start[rows, tags[:, 0]] + end[rows, tags[rows, lengths - 1]]


def log_likelihood(emissions: Tensor, tags: Tensor, lengths: Tensor, chain: Chain) -> Tensor:
    """[B]: log p of the paths."""
    return path_score(emissions, tags, lengths, chain) - log_partition(emissions, lengths, chain)


@torch.no_grad()
def viterbi(emissions: Tensor, lengths: Tensor, chain: Chain) -> list[list[int]]:
    """The best path of each row."""
    first, *others = emissions.unbind(1)
    best, came_from = [chain.start + first], []
    for now in others:
        scores, where = (best[-1][:, :, None] + chain.follow).max(1)  # [B, C]
        best.append(scores + now)
        came_from.append(where)
    rows = torch.arange(len(lengths), device=emissions.device)
    at = (torch.stack(best)[lengths - 1, rows] + chain.end).argmax(1)  # [B]: the tag of each row's last unit
    path = [at]
    for u in range(len(came_from) - 1, -1, -1):
        before = came_from[u].gather(1, path[-1][:, None])[:, 0]
        path.append(torch.where(u + 1 < lengths, before, at))  # a shorter row waits at its end
    found = torch.stack(path[::-1], 1).tolist()  # [B, U]
    return [row[:length] for row, length in zip(found, lengths.tolist())]


@torch.no_grad()
def stretch_logprobs(emissions: Tensor, chain: Chain, path: Tensor, stretches: list[tuple[int, int]]) -> list[float]:
    """Of one row, how probable it is (log) that the units of each stretch have the tags of the path, whatever the others.

    Args:
        emissions: [U, C].
        path: [U].
        stretches: (first, behind the last), by units.
    """
    if not stretches:
        return []
    ahead = forward_scores(emissions[None], chain.start, chain.follow)[:, 0]  # [U, C]
    behind = forward_scores(emissions[None].flip(1), chain.end, chain.follow.T)[:, 0].flip(0) - emissions  # [U, C]
    total = (ahead[-1] + chain.end).logsumexp(0)
    own = emissions.gather(1, path[:, None])[:, 0]  # [U]
    steps = torch.cat([own[:1] * 0, own[1:] + chain.follow[path[:-1], path[1:]]]).double().cumsum(0)  # [U]
    a, b = torch.tensor(stretches).T
    b = b - 1
    found = ahead[a, path[a]] + (steps[b] - steps[a]) + behind[b, path[b]] - total
    return found.clamp(max=0).tolist()
