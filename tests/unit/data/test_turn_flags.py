"""Flags of turns that exclude them from the loss, in the spelling of each tool; and keys of turns that nothing reads."""

from typing import Any

import pytest

from support.chat_templates import QWEN3, TEMPLATES
from support.models import make_tokenizer
from support.rows import write_jsonl
from weitiao.core.errors import DataError
from weitiao.core.example import Chat
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.mapping import find_mapping
from weitiao.data.read import read_sources
from weitiao.data.records import ExcludedRow
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.sft import SFT

FLAGS = ("weight", "train", "training", "loss", "trainable")


def conversation(**flag: Any) -> dict:
    """A wrong answer with a flag, a complaint and the right answer."""
    turns = [("user", "Capital of Peru?"), ("assistant", "Cusco"), ("user", "No."), ("assistant", "Lima")]
    messages: list[dict] = [{"role": role, "content": content} for role, content in turns]
    messages[1] |= flag
    return {"messages": messages}


def learned(record: dict, template: str = TEMPLATES["chatml"]) -> str:
    made = ChatProcessor.make(make_tokenizer(template))
    rows = SFT().rows(find_mapping([record], Chat, None, "f").make(record), made)
    return "".join(made.tokenizer.decode([x for x in row["labels"] if x >= 0]) for row in rows)


@pytest.mark.parametrize("template", ["chatml", "llama3", "qwen3", "mistral"])
@pytest.mark.parametrize("off", [0, 0.0, False, "false", "0"])
@pytest.mark.parametrize("name", FLAGS)
def test_turn_marked_off_carries_no_loss(name: str, off: Any, template: str) -> None:
    assert learned(conversation(**{name: off}), TEMPLATES[template]).strip() == "Lima<|im_end|>"


@pytest.mark.parametrize("on", [1, 1.0, True, "true", None])
@pytest.mark.parametrize("name", FLAGS)
def test_turn_marked_on_carries_loss(name: str, on: Any) -> None:
    assert learned(conversation(**{name: on})) == "Cusco<|im_end|>Lima<|im_end|>"


def test_flag_where_the_template_rewrites_history() -> None:
    """One row for each turn that is trained on."""
    assert learned(conversation(loss=False, content="<think>x</think>Cusco"), QWEN3) == "Lima<|im_end|>"


def test_marked_turn_is_context_and_evaluated_prompt_goes_to_the_trained_turn() -> None:
    record = conversation(weight=0)
    example: Any = find_mapping([record], Chat, None, "f").make(record)
    assert example.answer == "Lima" and [x.content for x in example.prompt] == ["Capital of Peru?", "Cusco", "No."]
    record["messages"][1]["weight"], record["messages"][3]["weight"] = 1, 0
    example = find_mapping([record], Chat, None, "f").make(record)
    assert example.answer == "Cusco" and len(example.prompt) == 1
    assert learned(record) == "Cusco<|im_end|>"


@pytest.mark.parametrize("value", [0.5, 2, "half", "yes"])
def test_weight_that_is_neither_on_nor_off_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"messages\[1\]: weight is '.*'; a turn can be trained on .1. or not .0."):
        learned(conversation(weight=value))


def test_all_turns_marked_off() -> None:
    record = conversation(train=False)
    record["messages"][3]["train"] = False
    with pytest.raises(ExcludedRow, match="every assistant turn is marked as not to be trained on"):
        learned(record)


def test_rows_without_a_turn_to_train_on_are_left_out_and_counted(tmp_path: Any) -> None:
    off = conversation(train=False)
    off["messages"][3]["train"] = False
    sources = [Source(path=str(write_jsonl(tmp_path / "a.jsonl", [off, conversation(weight=0), off])))]
    reading = read_sources(sources, create("objective", "sft"), 0.0)
    assert len(reading.examples) == 1 and not reading.bad
    assert "2 of 3 rows are left out" in "".join(map(str, reading.columns[0].notices()))
    with pytest.raises(DataError, match="all 1 rows are marked as not to be trained on"):
        read_sources([Source(path=str(write_jsonl(tmp_path / "b.jsonl", [off])))], create("objective", "sft"), 0.0)


@pytest.mark.parametrize("name", ["train_detail", "loss_scale"])
def test_flags_within_a_turn_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} changes what the turn means"):
        learned(conversation(**{name: [{"begin_offset": 0, "end_offset": 2, "train": False}]}))


def test_unread_keys_are_counted(tmp_path: Any) -> None:
    rows = [conversation(mood="calm", weight=1), conversation(mood="", score=None), conversation(mood="angry", name="Bo")]
    rows[0]["messages"][0]["train"] = True  # of a user's turn, which cannot be trained on
    rows[1]["messages"][0]["train"] = False
    reading = read_sources([Source(path=str(write_jsonl(tmp_path / "a.jsonl", rows)))], create("objective", "sft"), 0.0)
    (use,) = reading.columns
    assert use.filled == {"messages[].mood": 2, "messages[].name": 1, "messages[].train": 1}
    (line,) = use.notices()
    assert all(name in str(line) for name in use.filled) and "weight" not in str(line)
