"""Agreement, KL and differences against definitions by hand; what is refused."""

import math

import pytest
import torch

from weitiao.core.errors import ModelError
from weitiao.deploy.verification.fidelity import AnswerRow, compare, mean_kl

ROWS = [AnswerRow([1, 2], [3, 4, 0]), AnswerRow([5], []), AnswerRow([6, 7, 8], [9, 0])]


def fixed(seed: int, size: int = 11, shift: float = 0.0):
    """Log-probabilities that follow from the ids alone."""

    def log_probs(ids, start: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + sum(ids))
        return (torch.randn(len(ids) - start, size, generator=generator) + shift).log_softmax(-1)

    return log_probs


def test_equal_models_are_equal() -> None:
    result = compare(fixed(0), fixed(0), ROWS)
    assert (result.positions, result.rows) == (5, 2)  # the row without an answer is left out
    assert result.agreement.value == 1 and result.kl.value <= 1e-12 and result.max_logit_difference == 0
    assert result.first_difference is None


def test_figures_equal_definition() -> None:
    p, q = fixed(0), fixed(1)
    result = compare(p, q, ROWS, stop_ids=(0, 5))
    pairs = [(p([*r.prompt_ids, *r.answer_ids], len(r.prompt_ids)), q([*r.prompt_ids, *r.answer_ids], len(r.prompt_ids)))
             for r in ROWS if r.answer_ids]  # fmt: skip
    kl = sum(float((a.exp() * (a - b)).sum()) for a, b in pairs) / 5
    assert result.kl.value == pytest.approx(kl, rel=1e-5) and mean_kl(p, q, ROWS) == result.kl.value
    same = [bool(x == y) for a, b in pairs for x, y in zip(a.argmax(-1), b.argmax(-1))]
    assert result.agreement.value == sum(same) / 5
    assert result.max_logit_difference == pytest.approx(max(float((a - b).abs().max()) for a, b in pairs), rel=1e-5)
    at = result.first_difference
    assert at is not None and (at.row, at.position) == ((0, same.index(False)) if False in same[:3] else (2, 0))
    ends = [(int(x), int(y)) for a, b in pairs for x, y in zip(a.argmax(-1), b.argmax(-1)) if int(x) in (0, 5)]
    assert (result.ends.n if result.ends else 0) == len(ends)


def test_logits_shifted_by_a_constant_are_equal() -> None:
    """The error of a normalizer changes no probability and is no difference."""
    shifted = lambda ids, start: fixed(0)(ids, start) + 3e-4  # noqa: E731
    result = compare(fixed(0), shifted, ROWS)
    assert result.kl.value <= 1e-12 and result.max_logit_difference <= 1e-6


def test_padded_vocabulary() -> None:
    wide = lambda ids, start: torch.nn.functional.pad(fixed(0)(ids, start), (0, 5), value=-math.inf)  # noqa: E731
    assert compare(fixed(0), wide, ROWS).kl.value <= 1e-12
    assert compare(wide, fixed(0), ROWS).max_logit_difference <= 1e-6
    with pytest.raises(ModelError, match="the vocabularies differ: one has 11 tokens, the other 7, and .* These are not"):
        compare(fixed(0), fixed(0, size=7), ROWS)


def test_impossible_tokens() -> None:
    """-inf in both is no difference; a token that only the other excludes is infinitely far."""

    def without(log_probs, token: int):
        def masked(ids, start: int) -> torch.Tensor:
            x = log_probs(ids, start).clone()
            x[:, token] = -math.inf
            return x.log_softmax(-1)

        return masked

    masked = without(fixed(0), 4)
    result = compare(masked, masked, ROWS)
    assert result.kl.value <= 1e-12 and result.max_logit_difference == 0
    assert compare(fixed(0), masked, ROWS).kl.value == math.inf
    assert math.isfinite(compare(masked, fixed(0), ROWS).kl.value)


def test_near_tie_is_chance() -> None:
    def tied(first: float):
        return lambda ids, start: torch.tensor([[first, 0.0, -5.0]] * (len(ids) - start)).log_softmax(-1)

    assert compare(tied(4e-4), tied(-4e-4), ROWS).agreement.value == 1
    assert compare(tied(2e-3), tied(-2e-3), ROWS).agreement.value == 0


def test_refused() -> None:
    nan = lambda ids, start: fixed(0)(ids, start) * math.nan  # noqa: E731
    with pytest.raises(ModelError, match="gives NaN or infinite logits"):
        compare(fixed(0), nan, ROWS)
    with pytest.raises(ModelError, match="no answer to compare"):
        compare(fixed(0), fixed(0), [AnswerRow([1], [])])
    with pytest.raises(ModelError, match="of shape .1, 11. for an answer of 3 tokens"):
        compare(fixed(0), lambda ids, start: fixed(0)(ids, start)[:1], ROWS)
