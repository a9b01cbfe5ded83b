"""The preview of rows: which text carries loss, which is only read, which is truncated."""

from pathlib import Path
from typing import Any

import pytest

from support.models import make_tokenizer
from weitiao.core.example import Chat, Turn
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.data.preview import MAX_CHARACTERS, draw, preview
from weitiao.data.tokenization import ChatProcessor

SFT: Any = create(Objective, "sft")


@pytest.fixture
def processor() -> ChatProcessor:
    return ChatProcessor.make(make_tokenizer())


def row_of(processor: ChatProcessor, *words: str) -> Any:
    turns = tuple(Turn("user" if i % 2 == 0 else "assistant", x) for i, x in enumerate(words))
    (row,) = SFT.rows(Chat(turns), processor)
    return row


def test_preview_marks_trained_and_masked_tokens(processor: ChatProcessor) -> None:
    pieces = preview(SFT, row_of(processor, "你好 fox", "世界 paris", "again", "seven"), processor)
    assert pieces == [
        ("context", "<|im_start|>user\n你好 fox<|im_end|>\n<|im_start|>assistant\n"),
        ("target", "世界 paris<|im_end|>"),
        ("context", "\n<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"),
        ("target", "seven<|im_end|>"),
    ]
    drawn = draw(pieces)
    assert drawn.plain.count("⏎\n") == 7 and "�" not in drawn.plain
    styles = {str(span.style): drawn.plain[span.start : span.end] for span in drawn.spans}
    assert styles["bold green"] == "seven<|im_end|>"


def test_preview_shows_truncation_first(processor: ChatProcessor) -> None:
    row = row_of(processor, "what time is it", "paris")
    ids = processor.text("the wizards ask")
    assert preview(SFT, row, processor, ids)[0] == ("lost", "the wizards ask")
    assert preview(SFT, None, processor, ids) == [("lost", "the wizards ask")]


def test_preview_long_row_from_end(processor: ChatProcessor) -> None:
    pieces = preview(SFT, row_of(processor, "fox " * 400, "dog " * 20), processor)
    assert sum(len(text) for _, text in pieces) <= MAX_CHARACTERS + 4 and pieces[0][1].startswith("… ")
    assert pieces[-1][0] == "target" and pieces[-1][1].endswith("dog <|im_end|>")


@pytest.mark.parametrize("overlong", ["truncate", "drop"])
def test_preview_in_run_and_report(train_tiny: Any, chat_file: Path, overlong: str) -> None:
    run = train_tiny(max_length=40, overlong=overlong, train={"steps": 1})
    previews = run.read("resolved.json")["previews"]
    assert len(previews) == 2 and "longer than max_length" in previews[1]["title"]["template"]
    kinds = [kind for kind, _ in previews[1]["pieces"]]
    assert kinds[0] == "lost" and ("target" in kinds) == (overlong == "truncate")
    page = (run.folder / "report.html").read_text()
    assert '<span class="target">' in page and '<span class="lost">' in page
    assert run.read("resolved.json")["template"]["text"].startswith("{% for m in messages %}")
