"""Score: known intervals, and the same bootstrap every time."""

import math

import pytest

from weitiao.core.messages import Message
from weitiao.core.score import Score, bootstrapped, proportion, ratio_of_sums, score_notes, score_rows


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998, table I (method 3), and R's prop.test(correct = FALSE)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_interval_as_published(hits: int, n: int, low: float, high: float) -> None:
    score = proportion("accuracy", hits, n)
    assert (score.low, score.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert (score.value, score.n) == (hits / n, n)


def test_nothing_measured_shown() -> None:
    for score in (proportion("accuracy", 0, 0), bootstrapped("f1", [], len), ratio_of_sums("loss", [], [])):
        assert score.n == 0 and math.isnan(score.value) and str(score) == "not measured"


def test_bootstrap_deterministic_and_contains_value() -> None:
    items = [float(x % 7) for x in range(50)]

    def mean(values) -> float:
        return sum(values) / len(values)

    first, second = bootstrapped("x", items, mean), bootstrapped("x", items, mean)
    assert first == second and first.low < first.value < first.high
    spread = 1.96 * (sum((x - mean(items)) ** 2 for x in items) / 50) ** 0.5 / 50**0.5  # the normal interval
    assert first.high - first.low == pytest.approx(2 * spread, rel=0.1)


def test_ratio_of_sums() -> None:
    score = ratio_of_sums("loss", [10.0, 1.0], [100, 1])
    assert score.value == pytest.approx(11 / 101) and score.n == 2 and not score.higher_is_better
    assert ratio_of_sums("loss", [10.0, 1.0], [100, 1]) == score


def test_perplexity_is_exp_loss() -> None:
    sums, counts = [3.0, 5.0, 4.0, 9.0], [4, 4, 2, 5]
    loss, perplexity = ratio_of_sums("loss", sums, counts), ratio_of_sums("perplexity", sums, counts, math.exp)
    assert [perplexity.value, perplexity.low, perplexity.high] == pytest.approx(
        [math.exp(x) for x in (loss.value, loss.low, loss.high)]
    )


def test_intervals_apart() -> None:
    low, high = Score("loss", 1.0, 9, 0.9, 1.1, False), Score("loss", 2.0, 9, 1.05, 2.2, False)
    assert not low.differs_from(high)
    assert low.differs_from(Score("loss", 2.0, 9, 1.11, 2.2, False))


@pytest.mark.parametrize(
    ("name", "before", "after", "verdict", "change"),
    [
        ("loss", (2.0, 1.9, 2.1), (1.0, 0.9, 1.1), "better", "-1.000"),
        ("loss", (1.0, 0.9, 1.1), (2.0, 1.9, 2.1), "worse", "+1.000"),
        ("loss", (1.0, 0.5, 1.5), (1.2, 0.6, 1.6), "overlap", "+0.200"),
        ("accuracy", (0.2, 0.1, 0.3), (0.8, 0.7, 0.9), "better", "+60.0 points"),
        ("accuracy", (0.8, 0.7, 0.9), (0.2, 0.1, 0.3), "worse", "-60.0 points"),
    ],
)
def test_verdict_needs_separate_intervals(name: str, before: tuple, after: tuple, verdict: str, change: str) -> None:
    def plain(figures: tuple) -> dict:
        return Score(name, figures[0], 40, figures[1], figures[2], name != "loss").as_json()

    (row,) = score_rows({"before": {name: plain(before)}, "after": {name: plain(after)}})
    assert (row["verdict"], row["change"]) == (verdict, change)
    assert row["n"] == "40" and row["after"].endswith("]") and "[" in row["after"]


def test_unmeasured_scores_have_no_verdict() -> None:
    empty = proportion("accuracy", 0, 0).as_json()
    (row,) = score_rows({"before": {"accuracy": empty}, "after": {"accuracy": proportion("accuracy", 3, 4).as_json()}})
    assert (row["before"], row["change"], row["verdict"]) == ("not measured", "", "")
    (row,) = score_rows({"before": {"accuracy": empty}})
    assert row["after"] == "not measured"


def test_note_names_its_column() -> None:
    both, one = Message("rows are missing"), Message("12 classes")
    before = Score("f1", 0.5, 4, 0.4, 0.6, notes=(both, one)).as_json()
    after = Score("f1", 0.5, 4, 0.4, 0.6, notes=(both,)).as_json()
    notes = score_notes({"before": {"f1": before}, "after": {"f1": after}})
    assert list(map(str, notes)) == ["rows are missing", "before: 12 classes"]
    assert Score.from_json(before).notes == (both, one)
