"""Agreement, strengths and counts of votes, held to definitions, to scikit-learn, and to simulation."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import cohen_kappa_score

from support.reviews import make_review, votes_of
from weitiao.evaluate.review.agreement import alpha_interval, cohen_kappa, krippendorff_alpha
from weitiao.evaluate.review.bradley_terry import PRIOR, fitted, strengths
from weitiao.evaluate.review.review_results import FIRST, SECOND, TIE, majority_of, preference_rows, review_results

RANDOM = np.random.default_rng(3)


def alpha_by_definition(units: list[list[int]]) -> float:
    """1 - D_o / D_e, with every ordered pair of values counted one by one."""
    judged = [x for x in units if len(x) > 1]
    values = [v for x in judged for v in x]
    n = len(values)
    observed = sum(sum(a != b for a, b in itertools.permutations(x, 2)) / (len(x) - 1) for x in judged) / n
    expected = sum(a != b for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    return 1.0 if expected == 0 else 1 - observed / expected


def test_alpha_by_its_definition() -> None:
    for _ in range(1000):
        units = [RANDOM.integers(0, 4, RANDOM.integers(1, 5)).tolist() for _ in range(RANDOM.integers(3, 12))]
        if any(len(x) > 1 for x in units):
            assert krippendorff_alpha(units) == pytest.approx(alpha_by_definition(units), abs=1e-12)


def test_alpha_as_published() -> None:
    """Krippendorff 2011, sec. C: 12 units, 4 observers with missing values, nominal: 0.743."""
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[row[i] for row in table if row[i] is not None] for i in range(12)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_without_enough_votes() -> None:
    assert math.isnan(krippendorff_alpha([["a"], ["b"]])) and math.isnan(krippendorff_alpha([]))
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) == 1.0
    assert all(map(math.isnan, alpha_interval([["a", "a"]])))


def test_kappa_as_scikit_learn() -> None:
    for _ in range(1000):
        pairs = [(int(a), int(b)) for a, b in RANDOM.integers(0, 3, (RANDOM.integers(2, 30), 2))]
        expected = cohen_kappa_score(*zip(*pairs))
        if not math.isnan(expected):
            assert cohen_kappa(pairs) == pytest.approx(expected, abs=1e-12)


def test_bradley_terry_is_the_maximum_of_its_likelihood() -> None:
    for _ in range(20):
        m = int(RANDOM.integers(2, 5))
        wins = RANDOM.integers(0, 12, (m, m)).astype(float)
        np.fill_diagonal(wins, 0)
        counted = wins + PRIOR * ((wins + wins.T) > 0)

        def loss(s: np.ndarray, counted: np.ndarray = counted) -> float:
            s = np.concatenate([[0.0], s])
            return float((counted * np.logaddexp(0, s[None, :] - s[:, None])).sum())

        best = minimize(loss, np.zeros(m - 1), tol=1e-12).x
        assert fitted(wins)[1:] == pytest.approx(best, abs=1e-4)


def test_strengths_find_the_truth() -> None:
    truth, games = {"a": 0.0, "b": 1.0, "c": -0.5}, []
    for i in range(400):
        for one, two in itertools.combinations(truth, 2):
            won = RANDOM.random() < 1 / (1 + math.exp(truth[two] - truth[one]))
            games.append((i, one, two, float(won)))
    found = {x.name: x for x in strengths(games, list(truth))}
    assert found["a"].value == 0 and all(x.judged == 800 for x in found.values())
    assert all(found[x].low < truth[x] < found[x].high for x in ("b", "c"))


def test_a_model_that_never_loses_has_a_finite_strength() -> None:
    found = strengths([(i, "a", "b", 1.0) for i in range(20)], ["a", "b"])
    assert math.isfinite(found[1].value) and found[1].value < -2


def test_left_and_right_are_uniform_and_independent_of_the_model() -> None:
    """Blindness: whichever model is better, its answers are on the left half of the time, and orders differ by judge."""
    review = make_review(4000)
    swapped = sum(review.is_swapped("ann", x) for x in review.pairs)
    assert abs(swapped - 2000) < 4 * math.sqrt(1000)
    both = Counter((review.is_swapped("ann", x), review.is_swapped("bob", x)) for x in review.pairs)
    assert all(abs(x - 1000) < 4 * math.sqrt(750) for x in both.values())
    assert review.for_judge("ann")[:20] != review.for_judge("bob")[:20] != review.pairs[:20]
    assert not {review.id_of("ann", x) for x in review.pairs} & {review.id_of("bob", x) for x in review.pairs}
    other = make_review(4000, secret="1" * 32)
    same = sum(review.is_swapped("ann", x) == other.is_swapped("ann", x) for x in review.pairs)
    assert abs(same - 2000) < 4 * math.sqrt(1000)


def test_order_of_the_command_line_does_not_show() -> None:
    """With the models named in the other order, sides are drawn anew."""
    review, turned = make_review(2000), make_review(2000, ("new-model", "old-model"))
    lefts = [(review.sides("ann", x)[0], turned.sides("ann", y)[0]) for x, y in zip(review.pairs, turned.pairs)]
    assert abs(sum(a == b for a, b in lefts) - 1000) < 4 * math.sqrt(500)


def test_votes_are_counted_by_model_not_by_side() -> None:
    review = make_review(60)
    votes = votes_of(review, "ann", lambda pair, drawn: "new-model" if drawn.random() < 0.8 else "old-model")
    found = review_results(review, votes)
    pair = found.pairs[0]
    assert pair.second_wins + pair.first_wins == 60 and pair.second_wins > 40 and pair.p < 0.01
    assert pair.share.value == pytest.approx(pair.first_wins / 60) and pair.share.high < 0.5
    assert found.left.low < 0.5 < found.left.high and math.isnan(found.alpha)


def test_judges_and_ties() -> None:
    review = make_review(30)
    votes = []
    for i, name in enumerate(("ann", "bob", "eve")):
        votes += votes_of(review, name, lambda pair, drawn: drawn.choice(["new-model", "tie", "both_bad"]), i)
    found = review_results(review, votes)
    assert found.judges == {"ann": 30, "bob": 30, "eve": 30} and found.judged_twice == 30
    assert found.pairs[0].first_wins == 0 and found.pairs[0].prompts == 30
    assert found.alpha_low < 0.2 and -0.3 < found.alpha < 0.3  # they agree by chance only
    assert majority_of([FIRST, SECOND, TIE]) == TIE and majority_of([FIRST, FIRST, SECOND]) == FIRST


def test_equal_answers_are_ties_that_nobody_is_asked_about() -> None:
    review = make_review(10)
    for i in range(4):
        review.items[i].answers["new-model"] = review.items[i].answers["old-model"]
    votes = votes_of(review, "ann", lambda pair, drawn: "new-model")
    assert len(votes) == 6
    pair = review_results(review, votes).pairs[0]
    assert (pair.prompts, pair.second_wins, pair.ties, pair.same) == (10, 6, 4, 4)


def test_position_bias_is_seen() -> None:
    review = make_review(60)
    votes = votes_of(review, "ann", lambda pair, drawn: review.sides("ann", pair)[0])
    found = review_results(review, votes)
    assert found.left.value == 1 and found.left_p < 1e-9 and found.pairs[0].p > 0.01


def test_share_covers_the_truth() -> None:
    """93 to 97 % of the 95 % intervals of a win share hold the truth."""
    hits, n = 0, 400
    review = make_review(60)
    for seed in range(n):
        votes = votes_of(review, "ann", lambda p, d: d.choices(["old-model", "new-model", "tie"], [4, 4, 2])[0], seed)
        share = review_results(review, votes).pairs[0].share
        hits += share.low <= 0.5 <= share.high
    assert 0.93 <= hits / n <= 0.98


def test_preferences_as_trl_reads_them() -> None:
    review = make_review(9, ("a", "b", "c"))
    votes = votes_of(review, "ann", lambda pair, drawn: "tie" if pair.item == 0 else max(pair.first, pair.second))
    rows = preference_rows(review, votes)
    assert len(rows) == 8 * 3 and all(set(x) == {"prompt", "chosen", "rejected"} for x in rows)
    assert rows[0]["prompt"] == [{"role": "user", "content": "prompt 1"}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "answer l1"}]
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "answer k1"}]
    assert review_results(review, votes).strengths[2].value > 0
    assert preference_rows(review, []) == [] and not review_results(review, []).judges
