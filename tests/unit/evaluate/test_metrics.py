"""Metrics: values worked out by hand or by the library whose definition they follow."""

import math
from typing import Any

import pytest
from sklearn.metrics import f1_score

from weitiao.core.metric import Metric
from weitiao.core.registry import create, names
from weitiao.core.score import Score


def score(name: str, pairs: list) -> Score:
    metric: Any = create(Metric, name)
    return metric.score(pairs)


@pytest.mark.parametrize("name", names(Metric))
def test_no_rows_no_score(name: str) -> None:
    assert score(name, []).n == 0


def test_loss_and_perplexity() -> None:
    pairs = [(6.0, 3.0), (4.0, 2.0), (2.0, 5.0)]
    assert score("loss", pairs).value == pytest.approx(1.2)
    assert score("perplexity", pairs).value == pytest.approx(math.exp(1.2))
    assert score("loss", pairs).n == 3 and not score("perplexity", pairs).higher_is_better


def test_accuracy_exact_choices() -> None:
    assert score("accuracy", [("a", "a"), ("b", "a"), ("A", "a"), ("c", "c")]).value == 0.5


def test_exact_match_normalization() -> None:
    pairs = [("Paris ", "paris"), ("ＰＡＲＩＳ", "paris"), ("new\n york", "New York"), ("paris.", "paris"), ("", "paris")]
    assert score("exact_match", pairs).value == pytest.approx(3 / 5)


def test_macro_f1_equal_class_weights() -> None:
    # a: p = 2/3, r = 2/3; b: p = 1/1, r = 1/2; c: never answered; x, y: answered, and never right
    pairs = [("a", "a"), ("a", "a"), ("x", "a"), ("a", "b"), ("b", "b"), ("y", "c")]
    f1 = score("f1", pairs)
    assert f1.value == pytest.approx((2 / 3 + 2 / 3 + 0) / 5)
    assert "the mean over 5 classes; 2 of them only the model answers" in str(f1.notes[0])


def test_macro_f1_equals_scikit_learn() -> None:
    said, wanted = list("aabbccabcab"), list("abbbcaabccc")
    theirs = f1_score(wanted, said, average="macro", zero_division=0)
    assert score("f1", list(zip(said, wanted))).value == pytest.approx(theirs)


SUMS, RANKS, NUMBERS = [(1.0, 2.0), (3.0, 2.0)], [(1, 20), (12, 20)], [((1.0,), (2.0,)), ((3.0,), (2.5,))]
TAGS, WORDS = [(("B-a", "O"), ("B-a", "O")), (("O", "O"), ("O", "B-a"))], [("a", "a"), ("b", "a")]
KINDS = {
    **dict.fromkeys(("loss", "perplexity", "masked_accuracy"), SUMS),
    **dict.fromkeys(("mrr", "recall_at_10"), RANKS),
    **dict.fromkeys(("mae", "mse", "pearson", "spearman"), NUMBERS),
    **dict.fromkeys(("entity_f1", "entity_precision", "entity_recall"), TAGS),
}


def test_every_score_has_name_and_interval() -> None:
    for name in names(Metric):
        made = score(name, KINDS.get(name, WORDS) * 5)
        assert (made.name, made.n) == (name, 10) and made.low <= made.value <= made.high and made.interval
