"""Before and after on the same items: differences, sentences, advice."""

import pytest

from weitiao.core.forgetting_lines import forgetting_lines
from weitiao.evaluate.comparison.mcnemar import sign_test, tango_interval
from weitiao.evaluate.forgetting.advice import Training, advise
from weitiao.evaluate.forgetting.findings import Forgetting, findings
from weitiao.evaluate.forgetting.probes import ProbeResult


def right(probe: str, values: list[int], options: int = 0) -> list[ProbeResult]:
    return [ProbeResult(probe, str(i), f"{probe}.{i}", float(x), options=options) for i, x in enumerate(values)]


def test_a_loss_has_the_exact_paired_interval_and_a_sentence() -> None:
    before = right("exam.world_capitals_en", [1] * 120 + [0] * 45, options=4)
    after = right("exam.world_capitals_en", [0] * 20 + [1] * 100 + [1] * 4 + [0] * 41, options=4)
    (found,) = findings(before, after)
    low, high = tango_interval(4, 20, 165)
    x = found.difference
    assert (x.change, x.low, x.high, x.p) == (pytest.approx(-16 / 165), low, high, sign_test(4, 20))
    assert found.verdict == "worse"
    half = 100 * max(x.change - low, high - x.change)
    assert str(found.sentence) == f"capital cities (English): 73 → 63 %, -9.7 ± {half:.1f} (n = 165)"


def test_only_items_of_both_are_compared_whatever_their_order() -> None:
    before = right("behaviour.stops_zh", [1, 0, 1, 1])
    (found,) = findings(before, list(reversed(right("behaviour.stops_zh", [1, 0, 0]))))
    assert (found.difference.n, found.difference.losses, found.difference.wins) == (3, 1, 0)


def test_what_was_no_better_than_guessing_cannot_be_forgotten() -> None:
    before = right("exam.world_capitals_zh", [1, 0, 0, 0] * 40, options=4)
    (found,) = findings(before, right("exam.world_capitals_zh", [0] * 160, options=4))
    assert found.difference.verdict == "worse"
    assert found.verdict == "open"
    assert "not better than guessing before (25 %)" in str(found.sentence)


def test_bits_per_byte_are_of_all_text_together() -> None:
    before = [ProbeResult("bits_per_byte_en", str(i), f"t.{i}", 10.0 + i, 20 + i) for i in range(40)]
    after = [ProbeResult("bits_per_byte_en", x.id, x.item, 1.1 * x.value, x.size) for x in before]
    (found,) = findings(before, after)
    assert found.difference.change == pytest.approx(0.1 * found.difference.reference_score.value)
    assert found.verdict == "worse", "more bits are worse"
    assert "bits per byte, +" in str(found.sentence)


def test_a_loss_comes_first_and_advice_only_with_a_loss() -> None:
    same, lost = right("behaviour.format_en", [1] * 30), right("behaviour.stops_en", [1] * 30)
    found = findings([*same, *lost], [*same, *right("behaviour.stops_en", [0] * 20 + [1] * 10)])
    advice = advise(Training(trains_base=True, replay=0, epochs=2, learning_rate=1e-4))
    lines = forgetting_lines(Forgetting(tuple(found)).advised(advice).as_json())
    assert [kind for kind, _ in lines] == ["worse", "open", "advice"]
    assert Forgetting(tuple(findings(same, same))).advised(advice).advice is None


@pytest.mark.parametrize(
    ("training", "says"),
    [
        (Training(True, 0.0, 1, 1e-4), ("replay", "method: lora")),
        (Training(True, 0.2, 1, 1e-4), ("method: lora",)),
        (Training(False, 0.2, 3, 1e-4), ("fewer epochs than 3",)),
        (Training(False, 0.2, 1, 2e-4), ("learning_rate=1.0e-04",)),
    ],
)
def test_advice_follows_from_the_recipe(training: Training, says: tuple[str, ...]) -> None:
    text = str(advise(training))
    assert all(x in text for x in says)
    assert ("replay" in text) == (training.replay == 0)
