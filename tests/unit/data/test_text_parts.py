"""Which strings of a row are text, and how changed texts are put back."""

from typing import Any

import pytest

from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.data.mapping import find_mapping
from weitiao.data.text_parts import text_parts, with_texts

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"q": "<b>x</b>"}'}}
ROWS: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    (
        "sft",
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "u"}]},
                {"role": "assistant", "content": "a", "reasoning_content": "r", "tool_calls": [CALL]},
                {"role": "tool", "content": "<html>result</html>", "tool_call_id": "1"},
                {"role": "assistant", "content": "b"},
            ],
            "id": "not a text",
        },
        [
            ("messages[0].content", "system"),
            ("messages[1].content[0].text", "prompt"),
            ("messages[2].content", "answer"),
            ("messages[2].reasoning_content", "answer"),
            ("messages[4].content", "answer"),
        ],
    ),
    (
        "sft",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [("conversations[0].value", "prompt"), ("conversations[1].value", "answer")],
    ),
    (
        "sft",
        {"instruction": "i", "input": "more", "output": '{"json": 1}', "history": [["q", "a"]]},
        [("instruction", "prompt"), ("input", "prompt"), ("history[0][0]", "prompt"), ("history[0][1]", "answer")],
    ),
    ("classification", {"text": "t", "label": "a label"}, [("text", "text")]),
    ("causal_lm", {"text": "t", "url": "u"}, [("text", "text")]),
    ("seq2seq", {"source": "s", "target": "t"}, [("source", "prompt"), ("target", "answer")]),
    ("embedding", {"query": "q", "document": "d", "negatives": ["n", "m"]},
     [("query", "text"), ("document", "text"), ("negatives[0]", "text"), ("negatives[1]", "text")]),
    ("regression", {"sentence1": "a", "sentence2": "b", "score": 0.5}, [("sentence1", "text"), ("sentence2", "text")]),
]  # fmt: skip


@pytest.mark.parametrize(("objective", "row", "expected"), ROWS)
def test_texts_of_a_row(objective: str, row: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    mapping = find_mapping([row], create(Objective, objective).traits.example_type, None, "rows")
    parts = text_parts(row, mapping)
    assert [(x.field, x.role) for x in parts] == expected
    new = with_texts(row, {x.path: x.text + "!" for x in parts})
    assert [x.text for x in text_parts(new, mapping)] == [x.text + "!" for x in parts]
    assert new != row and with_texts(new, {x.path: x.text for x in parts}) == row
