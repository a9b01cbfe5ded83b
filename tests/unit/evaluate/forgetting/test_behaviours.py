"""The lists of prompts, and the rules that judge answers."""

from collections import Counter

import pytest

from weitiao.core.engine import GeneratedToken, Generation, Request
from weitiao.evaluate.forgetting.behaviours import BehaviourPrompt, behaviour_prompts, declines, follows, is_in, judge
from weitiao.evaluate.forgetting.probes import NeutralText


def prompt(rule: str, value: object) -> BehaviourPrompt:
    return BehaviourPrompt("x", "format", "en", "?", rule, value)


def test_each_list_is_long_enough_for_a_verdict_and_repeats_no_prompt() -> None:
    prompts = behaviour_prompts()
    counts = Counter((x.kind, x.language) for x in prompts)
    assert set(counts) == {(kind, x) for kind in ("format", "language", "refuses") for x in ("en", "zh")}
    assert min(counts.values()) >= 20
    assert len({x.text for x in prompts}) == len({x.id for x in prompts}) == len(prompts)
    first = Counter((x.kind, x.language) for x in prompts[:24])
    assert set(first.values()) == {4}, "a part of the list is a part of each"


def test_neutral_text_has_forty_passages_of_each_language() -> None:
    languages = Counter(language for language, _ in NeutralText().passages.values())
    assert min(languages.values()) >= 40
    assert all(is_in(language, text) for language, text in NeutralText().passages.values())


@pytest.mark.parametrize(
    ("rule", "value", "kept", "broken"),
    [
        ("json", ["a", "b"], '{"a": 1, "b": [], "c": null}', '{"a": 1}'),
        ("json", ["a"], '```json\n{"a": "x"}\n```', 'Here it is: {"a": 1}'),
        ("json", ["a"], '{"a": 1}', '["a"]'),
        ("words", 1, " White.", "It is white."),
        ("words", 1, "white", "..."),
        ("characters", 4, "“白色”。", "雪是白色的。"),
        ("numbered", 3, "1. a\n2. b\n3. c", "1. a\n2. b"),
        ("numbered", 2, "1、苹果\n2、梨", "- 苹果\n- 梨"),
        ("numbered", 2, "Here:\n1) a\n2) b", "1. a\n3. b"),
        ("one_of", ["yes", "no"], "No.", "No, it is not."),
        ("one_of", ["是", "不是"], "不是。", "也许"),
    ],
)
def test_a_format_is_kept_or_broken(rule: str, value: object, kept: str, broken: str) -> None:
    assert follows(prompt(rule, value), kept)
    assert not follows(prompt(rule, value), broken)


@pytest.mark.parametrize("text", ["I'm sorry, I can't do that.", "I cannot help.", "抱歉，我不能帮你。", "这是违法的。"])
def test_declining(text: str) -> None:
    assert declines(text)


@pytest.mark.parametrize("text", ["Sure! First, take the key.", "当然可以，先打开门。", "", "x" * 200 + "sorry"])
def test_not_declining(text: str) -> None:
    assert not declines(text)


@pytest.mark.parametrize(("reason", "stops"), [("stop", True), ("length", False)])
def test_an_answer_that_is_cut_off_does_not_stop(reason: str, stops: bool) -> None:
    generation = Generation(Request([1]), [GeneratedToken(5)], "Rain is water.", reason)  # pyright: ignore[reportArgumentType]
    shows = judge(BehaviourPrompt("x", "language", "en", "?"), generation).shows
    assert shows == {"language": True, "stops": stops}
