"""Agreement, KL and differences against definitions by hand; what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from weitiao.core.errors import ModelError
from weitiao.core.reporter import Reporter
from weitiao.deploy.verification.fidelity import BATCH_ANSWERS, BATCH_TOKENS, AnswerRow, batches, compare, mean_kl
from weitiao.deploy.verification.recording import Recording

ROWS = [AnswerRow([1, 2], [3, 4, 0]), AnswerRow([5], []), AnswerRow([6, 7, 8], [9, 0])]


def fixed(seed: int, size: int = 11, shift: float = 0.0):
    """Log-probabilities that follow from the ids alone."""

    def log_probs(ids, start: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + sum(ids))
        return (torch.randn(len(ids) - start, size, generator=generator) + shift).log_softmax(-1)

    return log_probs


def by_row(log_probs: Any) -> Any:
    """Rows -> log-probabilities, from (ids, where the answer starts) -> log-probabilities."""
    return lambda rows: [log_probs(x.ids, len(x.prompt_ids)) for x in rows]


def compared(p: Any, q: Any, rows: Any, **options: Any) -> Any:
    return compare(by_row(p), by_row(q), rows, **options)


def test_equal_models_are_equal() -> None:
    result = compared(fixed(0), fixed(0), ROWS)
    assert (result.positions, result.rows) == (5, 2)  # the row without an answer is left out
    assert result.agreement.value == 1 and result.kl.value <= 1e-12 and result.max_logit_difference == 0
    assert result.first_difference is None


def test_figures_equal_definition() -> None:
    p, q = fixed(0), fixed(1)
    result = compared(p, q, ROWS, stop_ids=(0, 5))
    pairs = [(p([*r.prompt_ids, *r.answer_ids], len(r.prompt_ids)), q([*r.prompt_ids, *r.answer_ids], len(r.prompt_ids)))
             for r in ROWS if r.answer_ids]  # fmt: skip
    kl = sum(float((a.exp() * (a - b)).sum()) for a, b in pairs) / 5
    assert result.kl.value == pytest.approx(kl, rel=1e-5) and mean_kl(by_row(p), by_row(q), ROWS) == result.kl.value
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
    result = compared(fixed(0), shifted, ROWS)
    assert result.kl.value <= 1e-12 and result.max_logit_difference <= 1e-6


def test_padded_vocabulary() -> None:
    wide = lambda ids, start: torch.nn.functional.pad(fixed(0)(ids, start), (0, 5), value=-math.inf)  # noqa: E731
    assert compared(fixed(0), wide, ROWS).kl.value <= 1e-12
    assert compared(wide, fixed(0), ROWS).max_logit_difference <= 1e-6
    with pytest.raises(ModelError, match="the vocabularies differ: one has 11 tokens, the other 7, and .* These are not"):
        compared(fixed(0), fixed(0, size=7), ROWS)


def test_impossible_tokens() -> None:
    """-inf in both is no difference; a token that only the other excludes is infinitely far."""

    def without(log_probs, token: int):
        def masked(ids, start: int) -> torch.Tensor:
            x = log_probs(ids, start).clone()
            x[:, token] = -math.inf
            return x.log_softmax(-1)

        return masked

    masked = without(fixed(0), 4)
    result = compared(masked, masked, ROWS)
    assert result.kl.value <= 1e-12 and result.max_logit_difference == 0
    assert compared(fixed(0), masked, ROWS).kl.value == math.inf
    assert math.isfinite(compared(masked, fixed(0), ROWS).kl.value)


def test_near_tie_is_chance() -> None:
    def tied(first: float):
        return lambda ids, start: torch.tensor([[first, 0.0, -5.0]] * (len(ids) - start)).log_softmax(-1)

    assert compared(tied(4e-4), tied(-4e-4), ROWS).agreement.value == 1
    assert compared(tied(2e-3), tied(-2e-3), ROWS).agreement.value == 0


def test_refused() -> None:
    nan = lambda ids, start: fixed(0)(ids, start) * math.nan  # noqa: E731
    with pytest.raises(ModelError, match="gives NaN or infinite logits"):
        compared(fixed(0), nan, ROWS)
    with pytest.raises(ModelError, match="no answer to compare"):
        compared(fixed(0), fixed(0), [AnswerRow([1], [])])
    with pytest.raises(ModelError, match="of shape .1, 11. for an answer of 3 tokens"):
        compared(fixed(0), lambda ids, start: fixed(0)(ids, start)[:1], ROWS)


def test_batches_hold_every_answer_once() -> None:
    """Rows of similar lengths are read together; order, sums and the first difference are as without batches."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 90, (60, 2), generator=generator).tolist()
    rows = [AnswerRow(list(range(1, a + 1)), list(range(b % 40))) for a, b in lengths]
    numbers = batches(rows)
    assert sorted(i for batch in numbers for i in batch) == [i for i, x in enumerate(rows) if x.answer_ids]
    for batch in numbers:
        padded = len(batch) * max(len(rows[i].ids) for i in batch)
        answers = sum(len(rows[i].answer_ids) for i in batch)
        assert len(batch) == 1 or (padded <= BATCH_TOKENS and answers <= BATCH_ANSWERS)
    result = compared(fixed(0), fixed(1), rows)
    alone = [compared(fixed(0), fixed(1), [x]) for x in rows if x.answer_ids]
    assert result.kl.value == pytest.approx(sum(x.kl.value * x.positions for x in alone) / result.positions)
    assert result.first_difference.row == next(i for i, x in enumerate(rows) if x.answer_ids)
    assert len(numbers) < len(alone) / 2


def test_recording_reads_back_what_was_recorded(tmp_path: Path) -> None:
    """Rows that occur twice, and rows of the same ids whose answers start elsewhere, too."""
    rows = [AnswerRow([1, 2], [3, 4]), AnswerRow([1], [2, 3, 4]), AnswerRow([1, 2], [3, 4]), AnswerRow([5], [6])]
    recording = Recording(tmp_path)
    recording.record(by_row(fixed(0)), rows, Reporter(Console(quiet=True)))
    assert all(torch.equal(a, b) for a, b in zip(recording(rows), by_row(fixed(0))(rows), strict=True))
    with pytest.raises(ModelError, match="were not recorded"):
        recording([AnswerRow([5], [7])])
    recording.close()
    assert not list(tmp_path.iterdir())
