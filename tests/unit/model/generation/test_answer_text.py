"""Text as it is generated: whole characters only, cut before a stop sequence, and in the end the whole answer's text."""

import random

import pytest

from support.models import make_tokenizer
from weitiao.model.generation.answer_text import AnswerText

TEXTS = ("the quick brown fox", "你好 世界 今天 天气", "naïve 🦊 jumps", "a\n\nb")


def decode(ids: list[int]) -> str:
    tokenizer = make_tokenizer()
    return str(tokenizer.decode(ids, skip_special_tokens=True))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("text", TEXTS)
def test_grows_by_whole_characters(text: str) -> None:
    tokenizer = make_tokenizer()
    answer, shown = AnswerText(tokenizer.decode), ""  # pyright: ignore[reportAttributeAccessIssue]
    for token in tokenizer(text)["input_ids"]:  # pyright: ignore[reportCallIssue]
        answer.add(token)
        assert answer.text.startswith(shown) and "\ufffd" not in answer.text
        shown = answer.text
    answer.finish()
    assert answer.text == text


def test_any_ids_give_the_text_of_all_of_them() -> None:
    tokenizer, generator = make_tokenizer(), random.Random(0)
    for _ in range(40):
        ids = [generator.randrange(3, 320) for _ in range(40)]
        answer = AnswerText(tokenizer.decode)  # pyright: ignore[reportAttributeAccessIssue]
        for token in ids:
            answer.add(token)
        answer.finish()
        expected = tokenizer.decode(ids)  # pyright: ignore[reportAttributeAccessIssue]
        assert answer.text.replace("\ufffd", "") == expected.replace("\ufffd", "")


def test_stop_sequences_are_cut_and_their_beginnings_held_back() -> None:
    pieces = ["Hello", " wor", "ld", " EN", "D", " more"]
    answer = AnswerText(lambda ids: "".join(pieces[i] for i in ids), ["END", " work"])
    shown = []
    for token in range(6):
        answer.add(token)
        shown.append(answer.text)
        if answer.is_stopped:
            break
    answer.finish()
    assert shown == ["Hello", "Hello", "Hello world", "Hello world ", "Hello world "]
    assert answer.is_stopped and answer.text == "Hello world "


def test_held_back_text_is_shown_at_the_end() -> None:
    answer = AnswerText(lambda ids: "".join("EN"[i] for i in ids), ["END"])
    for token in (0, 1):
        answer.add(token)
    assert answer.text == ""
    answer.finish()
    assert answer.text == "EN" and not answer.is_stopped
