"""The sampling law of core/engine.py: draws against softmax, penalties against formulas written by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from weitiao.core.engine import SamplingParams
from weitiao.model.generation.random_stream import philox, uniform
from weitiao.model.generation.sampling import SamplingState, adjusted, sample

DRAWS = 20_000
LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -3.0, 1.5, -8.0])


def state(seed: int = 0, index: int = 0, prompt: tuple[int, ...] = (), **params: Any) -> SamplingState:
    return SamplingState(SamplingParams(**params), seed, index, prompt)


def draws(**params: Any) -> np.ndarray:
    rows = [state(seed=7, index=i, **params) for i in range(DRAWS)]
    return np.array([x.id for x in sample(LOGITS.expand(DRAWS, -1), rows)])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    "kept",
    [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.3}, {"top_k": 6, "top_p": 0.9, "min_p": 0.2}],
    ids=str,
)
def test_draws_follow_the_law(temperature: float, kept: dict[str, Any]) -> None:
    """Chi-square against the law, written out again here in numpy."""
    p = np.exp(LOGITS.double().numpy() / temperature)
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda t: (-p[t], t))
    chosen = order[: kept.get("top_k") or len(p)]
    if kept.get("top_p", 1.0) < 1.0:
        total, nucleus = 0.0, []
        for token in chosen:
            nucleus.append(token)
            total += p[token]
            if total >= kept["top_p"]:
                break
        chosen = nucleus
    chosen = [t for t in chosen if p[t] >= kept.get("min_p", 0.0) * p.max()]
    expected = np.zeros(len(p))
    expected[chosen] = p[chosen] / p[chosen].sum()
    counts = np.bincount(draws(temperature=temperature, **kept), minlength=len(p))
    assert not counts[expected == 0].any()
    likely = expected * DRAWS >= 5
    pooled = [*counts[likely], counts[~likely].sum()], [*expected[likely] * DRAWS, expected[~likely].sum() * DRAWS]
    keep = np.array(pooled[1]) > 0
    assert chisquare(np.array(pooled[0])[keep], np.array(pooled[1])[keep]).pvalue > 1e-3


def test_top_p_beyond_the_sorted_candidates() -> None:
    """A flat distribution over many tokens: the nucleus is larger than what is sorted at first."""
    logits = torch.linspace(0, 0.1, 5000)
    rows = [state(seed=1, index=i, temperature=1.0, top_p=0.5) for i in range(4000)]
    tokens = [x.id for x in sample(logits.expand(4000, -1), rows)]
    p = logits.softmax(0).double().flip(0).cumsum(0)
    smallest = 5000 - 1 - int((p < 0.5).sum())
    assert min(tokens) >= smallest and min(tokens) < smallest + 20 and max(tokens) > 4980


def test_penalties_and_bias_by_their_formulas() -> None:
    params: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 0.4, "presence_penalty": 0.25}
    row = state(prompt=(0, 6, 2), logit_bias={1: 3.0, 5: -2.0}, **params)
    plain = state()
    row.counts(LOGITS[None])
    for token in (2, 2, 3):
        row.accept(token)
    z = adjusted(torch.stack([LOGITS, LOGITS]), [row, plain])
    expected = LOGITS.clone()
    expected[1] += 3.0
    expected[5] -= 2.0
    for token in (0, 2, 3, 6):  # in the prompt or the answer
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    for token, count in ((2, 2), (3, 1)):
        expected[token] -= 0.4 * count + 0.25
    assert torch.allclose(z[0], expected) and torch.equal(z[1], LOGITS)


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.zeros(3, 50_000)
    logits[:, [77, 3000, 49_999]] = 1.0
    assert [x.id for x in sample(logits, [state()] * 3)] == [77] * 3


def test_logprobs_are_of_the_model_itself() -> None:
    row = state(temperature=0.5, top_logprobs=2, logit_bias={7: 50.0}, seed=1)
    (token,) = sample(LOGITS[None], [row])
    logprobs = LOGITS.log_softmax(-1)
    assert token.id == 7 and token.logprob == pytest.approx(float(logprobs[7]))
    assert [i for i, _ in token.top_logprobs] == [0, 1] and token.top_logprobs[0][1] == pytest.approx(float(logprobs[0]))
    assert sample(LOGITS[None], [state(top_logprobs=0)])[0].top_logprobs == ()
    assert sample(LOGITS[None], [state()])[0].logprob is None


def test_a_draw_depends_on_nothing_beside_it() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 300)
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 2.0, "top_k": 40},
    ]
    rows = [state(seed=i, index=i % 2, **kinds[i % 4]) for i in range(6)]
    together = [x.id for x in sample(logits, rows)]
    assert together == [sample(logits[i : i + 1], [rows[i]])[0].id for i in range(6)]


class Only:
    """A constraint that allows some tokens."""

    is_finished = False

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allowed(self) -> torch.Tensor:
        return torch.zeros(8, dtype=torch.bool).index_fill_(0, torch.tensor(self.tokens), True)

    def accept(self, token: int) -> None:
        raise NotImplementedError


def test_only_tokens_that_the_grammar_allows() -> None:
    rows = [state(), state(temperature=1.0), state(temperature=1.0, top_k=5)]
    for row in rows:
        row.constraint = Only(6, 7)
    tokens = {x.id for seed in range(50) for x in sample(LOGITS.expand(3, -1), [_reseeded(row, seed) for row in rows])}
    assert tokens == {6, 7}, "tokens 8 and 9 are beyond what the constraint knows"


def _reseeded(row: SamplingState, seed: int) -> SamplingState:
    row.seed = seed
    return row


def test_random_stream() -> None:
    """Philox's known answers (Random123, kat_vectors), and numbers that are uniform and do not repeat."""
    ones = np.full((1, 4), 0xFFFFFFFF), np.full((1, 2), 0xFFFFFFFF)
    zero = philox(np.zeros((1, 4), int), np.zeros((1, 2), int))[0]
    assert [hex(x) for x in zero] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    assert [hex(x) for x in philox(*ones)[0]] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]
    u = uniform([3] * 3000, [i // 1000 for i in range(3000)], [i % 1000 for i in range(3000)])
    assert len(set(u)) == 3000 and chisquare(np.histogram(u, 20, (0, 1))[0]).pvalue > 1e-3
    assert uniform([5], [1], [2])[0] == uniform([9, 5], [0, 1], [7, 2])[1] != uniform([5], [2], [1])[0]
