"""The meaning of columns: every row format is recognized; what fits none is reported with the columns that exist."""

from typing import Any

import pytest

from weitiao.core.errors import DataError
from weitiao.core.example import Chat, Text, TextLabel
from weitiao.data.mapping import find_mapping

TURNS = [("user", "ask"), ("assistant", "say")]


def turns(record: dict, columns: dict | None = None) -> list[tuple[str, str]]:
    made: Any = find_mapping([record], Chat, columns, "f").make(record)
    return [(turn.role, turn.content) for turn in made.turns]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"prompt": "ask", "completion": "say"}, "prompt -> completion"),
        ({"prompt": "ask", "response": "say"}, "prompt -> response"),
        ({"question": "ask", "answer": "say"}, "question -> answer"),
        ({"query": "ask", "response": "say"}, "query -> response"),
        ({"input": "ask", "output": "say"}, "input -> output"),
        (
            {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]},
            "messages[].role/content",
        ),
        pytest.param(
            {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
            "conversations[].from/value (ShareGPT)",
        ),
        pytest.param(
            {"conversation": [{"from": "user", "value": "ask"}, {"from": "bot", "value": "say"}]},
            "conversation[].from/value (ShareGPT)",
        ),
        ({"instruction": "ask", "input": "", "output": "say"}, "instruction + input -> output (Alpaca)"),
        ({"instruction": "ask", "output": "say"}, "instruction -> output (Alpaca)"),
        (
            {"prompt": [{"role": "user", "content": "ask"}], "completion": [{"role": "assistant", "content": "say"}]},
            "prompt -> completion",
        ),
    ],
)
def test_every_row_format_recognized(record: dict, words: str) -> None:
    mapping = find_mapping([record], Chat, None, "f")
    assert mapping.description.startswith(words) and mapping.example_type is Chat
    assert turns(record) == TURNS


@pytest.mark.parametrize(
    ("record", "wanted"),
    [
        ({"instruction": "ask", "input": "more", "output": "say"}, [("user", "ask\nmore"), ("assistant", "say")]),
        (
            {"instruction": "ask", "output": "say", "system": "kind", "history": [["a", "b"]]},
            [("system", "kind"), ("user", "a"), ("assistant", "b"), *TURNS],
        ),
        ({"prompt": "ask", "completion": "say", "system": "kind"}, [("system", "kind"), *TURNS]),
        pytest.param(
            {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}], "system": "kind"},
            [("system", "kind"), *TURNS],
        ),
        ({"question": 7, "answer": 4.5}, [("user", "7"), ("assistant", "4.5")]),
    ],
)
def test_extra_columns_allowed(record: dict, wanted: list) -> None:
    assert turns(record) == wanted


@pytest.mark.parametrize("key", ["text", "content", "document"])
def test_plain_text_rows(key: str) -> None:
    mapping = find_mapping([{key: "words", "id": 3}], Text, None, "f")
    assert mapping.make({key: "words", "id": 3}) == Text("words") and mapping.description == key


def test_columns_setting_used() -> None:
    record = {"q": "ask", "a": "say", "s": "kind", "prompt": "not this", "completion": "nor this"}
    assert turns(record, {"prompt": "q", "completion": "a"}) == TURNS
    assert turns(record, {"prompt": "q", "completion": "a", "system": "s"}) == [("system", "kind"), *TURNS]
    assert (
        turns({"log": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]}, {"messages": "log"})
        == TURNS
    )
    assert find_mapping([record], Text, {"text": "q"}, "f").make(record) == Text("ask")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"prompt": "qestion", "completion": "answer"},
            "f has no column 'qestion'. Did you mean 'question'? Its columns are: answer, question.",
        ),
        (
            {"promt": "question"},
            "columns: there is no 'promt'. Did you mean 'prompt'? "
            "There are: prompt, completion, context, system, messages.",
        ),
        ({"prompt": "question"}, "f: this objective needs columns: {prompt: ..., completion: ...} or {messages: ...}."),
        ({"text": "question"}, "f: this objective needs columns: {prompt: ..., completion: ...} or {messages: ...}."),
    ],
)  # fmt: skip
def test_wrong_columns_error(columns: dict, words: str) -> None:
    with pytest.raises(DataError) as error:
        find_mapping([{"question": "ask", "answer": "say"}], Chat, columns, "f")
    assert str(error.value) == words


def test_columns_of_later_rows_counted() -> None:
    records: list[dict] = [{"id": 1}, {"id": 2, "prompt": "a", "completion": "b"}]
    assert find_mapping(records, Chat, None, "f").description == "prompt -> completion"


def test_chat_not_read_as_text() -> None:
    with pytest.raises(DataError, match="no column of plain text found.*They look like messages.*objective: sft"):
        find_mapping([{"messages": []}], Text, None, "f")


def test_text_not_read_as_chat() -> None:
    with pytest.raises(
        DataError, match="no columns of a prompt and its completion found.*They look like text, for objective: causal_lm"
    ):
        find_mapping([{"text": "words"}], Chat, None, "f")


GOOD = {"role": "assistant", "content": "say"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            {"messages": [{"role": "asistant", "content": "x"}]},
            "messages[0]: unknown role 'asistant'. Did you mean 'assistant'? Roles are: system, user, assistant, tool",
        ),
        (
            {"messages": [GOOD, {"content": "x"}]},
            "messages[1]: unknown role None. Roles are: system, user, assistant, tool",
        ),
        ({"messages": [{"role": "user", "content": "x"}]}, "there is no assistant turn, so there is nothing to train on"),
        ({"messages": [{"role": "assistant", "content": " \n"}]}, "the answer is empty"),
        ({"messages": [GOOD, {"role": "assistant", "content": ""}]}, "the answer is empty"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0]: content is null, not text"),
        ({"messages": ["words"]}, "messages[0] is not an object"),
        ({"messages": []}, "'messages' is missing or not a list of turns"),
        ({"messages": "words"}, "'messages' is missing or not a list of turns"),
        ({"prompt": "x", "completion": ""}, "the answer is empty"),
        ({"prompt": "x", "completion": None}, "column 'completion' is empty (null)"),
        ({"prompt": "x", "completion": True}, "column 'completion' is true or false, not text"),
        ({"prompt": {"a": 1}, "completion": "b"}, "column 'prompt' is an object, not text"),
        ({"instruction": "x", "output": "  "}, "the answer is empty"),
    ],
)  # fmt: skip
def test_bad_row_reason(record: dict, words: str) -> None:
    with pytest.raises(ValueError) as error:
        turns(record)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (2.0, ("2",)),
        (2.5, ("2.5",)),
        (["b", "a", "a"], ("a", "b")),
        ('["b", "a"]', ("a", "b")),
        ("[]", ()),
        ("[sic]", ("[sic]",)),
    ],
)
def test_class_columns_of_tables(label: object, wanted: tuple) -> None:
    mapping = find_mapping([{"text": "a", "label": "x"}], TextLabel, None, "f")
    assert mapping.make({"text": "a", "label": label}).labels == wanted


@pytest.mark.parametrize("label", [float("nan"), None, ["a", None], ["a", float("nan")], {"a": 1}, " "])
def test_invalid_class_refused(label: object) -> None:
    mapping = find_mapping([{"text": "a", "label": "x"}], TextLabel, None, "f")
    with pytest.raises(ValueError, match="the row has no class|not a class"):
        mapping.make({"text": "a", "label": label})
    with pytest.raises(ValueError, match="column 'text' is empty .NaN."):
        mapping.make({"text": float("nan"), "label": "x"})


def test_row_without_column_reported() -> None:
    mapping = find_mapping([{"prompt": "a", "completion": "b"}], Chat, None, "f")
    with pytest.raises(ValueError, match="column 'completion' is missing"):
        mapping.make({"prompt": "a"})
