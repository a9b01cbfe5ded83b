"""Losses over the vectors of a batch's texts; sources and formulas are in objectives/embedding.py."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def similarities(vectors: Tensor, texts: Sequence[Sequence[Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """The cosines [B, C] of B queries with C candidates, and the row [C] that each candidate belongs to.

    Candidates are the right documents in the order of the rows, then all negatives. -inf: a document that is right for
    the same query in another row.

    Args:
        vectors: [P, D], of length 1.
        texts: the token ids of the P texts, [rows][query, document, negatives ...].
    """
    queries: list[int] = []
    documents: list[int] = []
    negatives: list[int] = []
    owners: list[int] = []
    start = 0
    for row, group in enumerate(texts):
        queries.append(start)
        documents.append(start + 1)
        negatives += range(start + 2, start + len(group))
        owners += [row] * (len(group) - 2)
        start += len(group)
    candidates = [*documents, *negatives]
    ids = [tuple(text) for group in texts for text in group]
    right: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for query, document in zip(queries, documents):
        right.setdefault(ids[query], set()).add(ids[document])
    no_negative = torch.tensor([[ids[j] in right[ids[i]] for j in candidates] for i in queries])  # [B, C]
    no_negative.fill_diagonal_(False)
    scores = vectors[queries] @ vectors[candidates].T  # [B, C]
    scores = scores.masked_fill(no_negative.to(scores.device), -torch.inf)
    return scores, torch.tensor([*range(len(queries)), *owners], device=scores.device)


def in_batch_loss(scores: Tensor, temperature: float) -> Tensor:
    """[B, C], the right candidate on the diagonal -> [B]"""
    right = torch.arange(len(scores), device=scores.device)
    return F.cross_entropy(scores / temperature, right, reduction="none")


def triplet_loss(scores: Tensor, owners: Tensor, margin: float) -> Tensor:
    """[B, C], [C] -> [B]. A row's own negatives are averaged; without any, the most similar candidate counts."""
    rows = torch.arange(len(scores), device=scores.device)
    wrong = scores.clone()
    wrong[rows, rows] = -torch.inf
    own = (owners == rows[:, None]) & wrong.isfinite()  # [B, C]
    average = wrong.masked_fill(~own, 0.0).sum(1) / own.sum(1).clamp(min=1)
    negative = torch.where(own.any(1), average, wrong.max(1).values)
    return F.relu(margin - scores.diagonal() + negative)


def cosent_loss(cosines: Tensor, similarity: Tensor, temperature: float) -> Tensor:
    """[B], [B] -> [B]: the batch's one loss, for each of its rows; their mean is that loss."""
    s = cosines / temperature
    gaps = (s[None, :] - s[:, None])[similarity[:, None] > similarity[None, :]]  # s_j - s_i where y_i > y_j
    return torch.logsumexp(torch.cat([gaps, gaps.new_zeros(1)]), 0).expand(len(s))
