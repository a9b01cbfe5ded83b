"""Word and character error rates: jiwer's figures on the plain form, a ratio of sums, and what does not count."""

import jiwer
import pytest

from weitiao.core.score import is_percentage
from weitiao.evaluate.error_rate import normalize_text, split_words
from weitiao.evaluate.metrics.cer import CER
from weitiao.evaluate.metrics.wer import WER

PAIRS = [
    ("Give 20 milligrams of ramipril.", "give 20 milligrams of Ramipril"),
    ("the patient takes lamictal and sertraline", "The patient takes lamotrigine and sertraline every evening."),
    ("", "Stop."),
    ("a rash, after well, all of it", "There was a rash."),
]


def test_error_rates_equal_jiwer() -> None:
    said, right = ([normalize_text(pair[i]) for pair in PAIRS] for i in (0, 1))
    word, letter = WER().score(PAIRS), CER().score(PAIRS)
    assert word.value == pytest.approx(jiwer.wer(right, said)) and letter.value == pytest.approx(jiwer.cer(right, said))
    assert word.n == 4 and word.low <= word.value <= word.high and not word.higher_is_better and is_percentage("wer")


def test_error_rate_above_one_and_zero() -> None:
    assert WER().score([("a b c", "d")]).value == 3.0
    right = WER().score([(x, x) for x, _ in PAIRS[:2]])
    assert right.value == right.low == 0.0 and 0.5 < right.high < 1 and not right.higher_is_better


def test_error_rate_ignores_case_and_punctuation() -> None:
    assert normalize_text("  Don\u2019t STOP: 'twenty-one'\u2026 50% \uff2f\uff2b!") == "don't stop twenty one 50 ok"
    assert split_words("\u4eca\u5929 5\u6708\uff0cOK") == ["\u4eca", "\u5929", "5", "\u6708", "ok"]
    assert WER().score([("\u4eca\u5929\u597d", "\u4eca\u5929\u3002")]).value == 0.5
