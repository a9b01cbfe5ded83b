"""The CRF against brute force: log Z, paths, stretches; rows of unequal length, and rows that begin or end mid-text."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from weitiao.core.bio_tags import Scheme, all_tags, tags_to_entities
from weitiao.objective.crf import (
    FORBIDDEN,
    Chain,
    ChainScores,
    log_likelihood,
    log_partition,
    path_score,
    scheme_rules,
    span_logprobs,
    viterbi,
    with_open_ends,
)

LENGTHS = (4, 1, 3, 2)


def some(scheme: Scheme, kinds: tuple[str, ...], seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Chain]:
    """(emissions [B, U, C], lengths, a chain with random scores), in float64."""
    tags = all_tags(kinds, scheme)
    random = torch.Generator().manual_seed(seed)
    rng_key = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64) * scale  # noqa: E731
    c, plain = len(tags), scheme_rules(tags, scheme)
    chain = Chain(rng_key(c), rng_key(c, c), rng_key(c))
    allowed = (
        x.masked_fill(rule < 0, FORBIDDEN)
        for x, rule in ((chain.start, plain.start), (chain.transitions, plain.transitions), (chain.end, plain.end))
    )
    return rng_key(len(LENGTHS), max(LENGTHS), c), torch.tensor(LENGTHS), Chain(*allowed)


def by_hand(emissions: Tensor, chain: Chain, row: int, length: int) -> dict[tuple[int, ...], float]:
    """Every path of a row, and its score."""
    many = emissions.shape[2]
    start, end = chain.start.expand(len(emissions), -1)[row], chain.end.expand(len(emissions), -1)[row]
    found = {}
    for path in itertools.product(range(many), repeat=length):
        score = start[path[0]] + end[path[-1]] + sum(emissions[row, u, y] for u, y in enumerate(path))
        found[path] = float(score + sum(chain.transitions[a, b] for a, b in zip(path, path[1:])))
    return found


@pytest.mark.parametrize("middle", [False, True], ids=["whole texts", "windows"])
@pytest.mark.parametrize(("scheme", "kinds"), [("bio", ("a",)), ("bio", ("a", "b")), ("bioes", ("a",))])
def test_partition_and_best_path_equal_brute_force(scheme: Scheme, kinds: tuple[str, ...], middle: bool) -> None:
    for seed in range(5):
        emissions, lengths, chain = some(scheme, kinds, seed, scale=(0.1, 1.0, 5.0, 20.0, 1.0)[seed])
        if middle:
            mixed = torch.tensor([True, False, False, True])
            chain = with_open_ends(chain, mixed, ~mixed)
        log_z, best = log_partition(emissions, lengths, chain), viterbi(emissions, lengths, chain)
        for row, length in enumerate(LENGTHS):
            paths = by_hand(emissions, chain, row, length)
            most = max(paths.values())
            wanted = most + math.log(sum(math.exp(x - most) for x in paths.values()))
            assert float(log_z[row]) == pytest.approx(wanted, abs=1e-6)
            assert tuple(best[row]) == max(paths, key=lambda path: paths[path])
            tags = torch.tensor([best[row] + [0] * (max(LENGTHS) - length)])
            own = Chain(chain.start.expand(4, -1)[row], chain.transitions, chain.end.expand(4, -1)[row])
            scored = path_score(emissions[row : row + 1], tags, lengths[row : row + 1], own)
            assert float(scored) == pytest.approx(most, abs=1e-9)


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_forbidden_transitions_never_decoded(scheme: Scheme) -> None:
    """However loudly the emissions ask for it."""
    tags = all_tags(("a", "b"), scheme)
    random = torch.Generator().manual_seed(0)
    for scale in (1.0, 100.0, 1e6):
        emissions = torch.randn(64, 12, len(tags), generator=random) * scale
        emissions[:, :, 2] += scale  # I-a
        lengths = torch.randint(1, 13, (64,), generator=random)
        for path in viterbi(emissions, lengths, scheme_rules(tags, scheme)):
            tags_to_entities([tags[i] for i in path])  # raises where the scheme is broken
    plain = torch.zeros(1, 2, len(tags))
    bad = torch.tensor([[0, 2]])  # O I-a
    assert float(log_likelihood(plain, bad, torch.tensor([2]), scheme_rules(tags, scheme))) < -1e20


def test_padding_never_read() -> None:
    emissions, lengths, chain = some("bio", ("a", "b"), 3)
    other = emissions.clone()
    for row, length in enumerate(LENGTHS):
        other[row, length:] = 1e3
    assert torch.equal(log_partition(emissions, lengths, chain), log_partition(other, lengths, chain))
    assert viterbi(emissions, lengths, chain) == viterbi(other, lengths, chain)


def test_crf_gradients() -> None:
    emissions, lengths, chain = some("bio", ("a",), 1)
    tags = torch.tensor(viterbi(emissions, torch.full((4,), 4), chain))
    module = ChainScores(scheme_rules(all_tags(("a",), "bio"), "bio")).double()
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight))

    def total(e: Tensor, *weights: Tensor) -> Tensor:
        held = dict(zip(("start", "transitions", "end"), weights))
        return log_likelihood(e, tags, lengths, torch.func.functional_call(module, held, ())).sum()

    given = (emissions.requires_grad_(), *(x.detach().clone().requires_grad_() for x in module.parameters()))
    assert total(*given).item() > -1e3 and torch.autograd.gradcheck(total, given)
    loud = (emissions.detach().float() * 1e4).requires_grad_()
    log_partition(loud, lengths, Chain(*(x.float() for x in (chain.start, chain.transitions, chain.end)))).sum().backward()
    assert bool(loud.grad.isfinite().all())
    assert loud.grad.sum(2)[0].tolist() == pytest.approx([1.0] * 4, abs=1e-5)


@pytest.mark.parametrize("scheme", ["bio", "bioes"])
def test_span_probability(scheme: Scheme) -> None:
    emissions, _, chain = some(scheme, ("a",), 7)
    paths = by_hand(emissions, chain, 0, 4)
    best = max(paths, key=lambda path: paths[path])
    total = sum(math.exp(x) for x in paths.values())
    stretches = [(a, b) for a in range(4) for b in range(a + 1, 5)]
    found = span_logprobs(emissions[0], chain, torch.tensor(best), stretches)
    for (a, b), log_p in zip(stretches, found):
        wanted = sum(math.exp(x) for path, x in paths.items() if path[a:b] == best[a:b]) / total
        assert math.exp(log_p) == pytest.approx(wanted, rel=1e-9)
