"""Conversations with tools: rendered by each family's own template, and what the assistant generates carries loss."""

import json
from typing import Any

import pytest

from support.agent_templates import FAMILIES, family_stops, family_tokenizer
from weitiao.core.batch import IGNORE
from weitiao.core.example import Chat
from weitiao.data.chat_checks import check_chats
from weitiao.data.mapping import find_mapping
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.sft import SFT

TOOL = {"type": "function", "function": {"name": "weather", "description": "-", "parameters": {"type": "object"}}}
REASONING = (
    "the chat template does not render an assistant's reasoning, so it would be lost: set chat_template to one that does"
)
PARTS = "the chat template does not render all of an assistant's turn; it leaves out: content"
CALLS = "the chat template does not render tool calls, so they would be lost: set chat_template to one that does"


def processor(name: str) -> ChatProcessor:
    tokenizer = family_tokenizer(name)
    return ChatProcessor.make(tokenizer, family_stops(name, tokenizer))


def chat(record: dict[str, Any]) -> Chat:
    example = find_mapping([record], Chat, None, "f").make(record)
    assert isinstance(example, Chat)
    return example


def weather(content: str | None, *cities: str, **more: Any) -> Chat:
    """A question, a turn that asks for the weather of cities, the results, and an answer."""
    calls = [{"function": {"name": "weather", "arguments": json.dumps({"city": x})}} for x in cities]
    call = {"role": "assistant", "content": content, "tool_calls": calls, **more}
    results = [{"role": "tool", "content": f"{i} C"} for i, _ in enumerate(cities, 7)]
    question, answer = {"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "It is cold."}
    return chat({"messages": [question, call, *results, answer], "tools": [TOOL]})


def learned(made: ChatProcessor, example: Chat) -> list[str]:
    """What carries loss, one text for each stretch."""
    stretches: list[list[int]] = []
    for row in SFT().rows(example, made):
        labels = [IGNORE, *row["labels"]]
        for before, label in zip(labels, labels[1:]):
            if label != IGNORE:
                stretches = [*stretches, [label]] if before == IGNORE else [*stretches[:-1], [*stretches[-1], label]]
    return [made.tokenizer.decode(x) for x in stretches]


QWEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
GLM45 = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>%s</arg_value>\n</tool_call>"
DEEPSEEK = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "%s"}\n```<｜tool▁call▁end｜>'
NEMO = '{"name": "weather", "arguments": {"city": "%s"}, "id": "00000000%d"}'
END = "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
THINK = "<think>\n\n</think>\n\n"
EXPECTED = {  # family: a call; words and a call; two calls; a thought and a call; and the answer at the end
    "qwen25": (
        QWEN % "Oslo" + "<|im_end|>",
        "Let me look.\n" + QWEN % "Oslo" + "<|im_end|>",
        QWEN % "Oslo" + "\n" + QWEN % "Bonn" + "<|im_end|>",
        ValueError(REASONING),
        "It is cold.<|im_end|>",
    ),
    "qwen3": (
        THINK + QWEN % "Oslo" + "<|im_end|>",
        THINK + "Let me look.\n" + QWEN % "Oslo" + "<|im_end|>",
        THINK + QWEN % "Oslo" + "\n" + QWEN % "Bonn" + "<|im_end|>",
        "<think>\nWhere is it?\n</think>\n\n" + QWEN % "Oslo" + "<|im_end|>",
        THINK + "It is cold.<|im_end|>",
    ),
    "llama31": (
        '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
        ValueError(PARTS),
        ValueError("the chat template rejects this conversation: This model only supports single tool-calls at once!"),
        ValueError(REASONING),
        "It is cold.<|eot_id|>",
    ),
    "mistral": (
        f"[TOOL_CALLS] [{NEMO % ('Oslo', 0)}]</s>",
        ValueError(PARTS),
        f"[TOOL_CALLS] [{NEMO % ('Oslo', 0)}, {NEMO % ('Bonn', 1)}]</s>",
        ValueError(REASONING),
        " It is cold.</s>",
    ),
    "glm4": (
        'weather\n{"city": "Oslo"}<|observation|>',
        '\nLet me look.<|assistant|>weather\n{"city": "Oslo"}<|observation|>',
        'weather\n{"city": "Oslo"}<|assistant|>weather\n{"city": "Bonn"}<|observation|>',
        ValueError(REASONING),
        "\nIt is cold.<|endoftext|>",
    ),
    "glm45": (
        "\n<think></think>\n" + GLM45 % "Oslo" + "<|observation|>",
        "\n<think></think>\nLet me look.\n" + GLM45 % "Oslo" + "<|observation|>",
        "\n<think></think>\n" + GLM45 % "Oslo" + "\n" + GLM45 % "Bonn" + "<|observation|>",
        "\n<think>Where is it?</think>\n" + GLM45 % "Oslo" + "<|observation|>",
        "\n<think></think>\nIt is cold.<|endoftext|>",
    ),
    "gemma": (*[ValueError(CALLS)] * 4, ""),
    "deepseek": (
        "<｜tool▁calls▁begin｜>" + DEEPSEEK % "Oslo" + END,
        "Let me look.<｜tool▁calls▁begin｜>" + DEEPSEEK % "Oslo" + END,
        "<｜tool▁calls▁begin｜>" + DEEPSEEK % "Oslo" + "\n" + DEEPSEEK % "Bonn" + END,
        ValueError(REASONING),
        "It is cold.<｜end▁of▁sentence｜>",
    ),
}
CONVERSATIONS = (
    weather(None, "Oslo"),
    weather("Let me look.", "Oslo"),
    weather("", "Oslo", "Bonn"),
    weather(None, "Oslo", reasoning_content="Where is it?"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_carry_loss_or_row_is_put_aside(name: str) -> None:
    """The whole turn: thought, words, calls and stop token; and never the results, the tools or the question."""
    made, (*turns, answer) = processor(name), EXPECTED[name]
    for example, turn in zip(CONVERSATIONS, turns, strict=True):
        if isinstance(turn, ValueError):
            with pytest.raises(ValueError) as error:
                made.chat(example.turns, example.tools)
            assert str(error.value) == str(turn)
        else:
            assert learned(made, example) == [turn, answer]


@pytest.mark.parametrize("name", FAMILIES)
def test_asked_prompt_equals_learned_prompt_with_tools(name: str) -> None:
    made = processor(name)
    for example, turn in zip(CONVERSATIONS, EXPECTED[name]):
        if isinstance(turn, str):
            rows, prompt = made.chat(example.turns, example.tools), made.prompt(example.prompt, example.tools)
            assert rows[-1].ids[: len(prompt)] == prompt and len(rows[-1].ids) > len(prompt)
            text = made.tokenizer.decode(prompt)
            assert "weather" in text and "7 C" in text, "tools, calls and results are in the prompt"


@pytest.mark.parametrize("name", [x for x in FAMILIES if x != "mistral"])
def test_result_without_words_of_python(name: str) -> None:
    made = processor(name)
    for example, turn in zip(CONVERSATIONS, EXPECTED[name]):
        if isinstance(turn, str):
            text = "".join(made.tokenizer.decode(row.ids) for row in made.chat(example.turns, example.tools))
            assert "None" not in text and "{'city'" not in text


def test_template_without_tools_puts_row_aside() -> None:
    """Tools without a call are lost, too."""
    record = {"prompt": "Weather?", "completion": "I cannot know.", "tools": [TOOL]}
    with pytest.raises(ValueError, match="does not render the tools, so they would be lost"):
        processor("gemma").chat(chat(record).turns, chat(record).tools)
    assert len(processor("qwen25").chat(chat(record).turns, chat(record).tools)) == 1


SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
        {"from": "observation", "value": "7 C"},
        {"from": "gpt", "value": "It is cold."},
    ],
    "tools": json.dumps([TOOL["function"]]),
}
MS_SWIFT = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool_call", "content": '{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\"}"}'},
        {"role": "tool_response", "content": "7 C"},
        {"role": "assistant", "content": "It is cold."},
    ],
    "tools": [TOOL],
}
OLD_OPENAI = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"role": "function", "name": "weather", "content": "7 C"},
        {"role": "assistant", "content": "It is cold."},
    ],
    "functions": [TOOL["function"]],
}


@pytest.mark.parametrize("record", [SHAREGPT, MS_SWIFT, OLD_OPENAI], ids=["sharegpt", "ms_swift", "old_openai"])
def test_dialects_of_calls(record: dict) -> None:
    example = chat(record)
    assert [turn.role for turn in example.turns] == ["user", "assistant", "tool", "assistant"]
    assert [(x.name, x.arguments) for x in example.turns[1].tool_calls] == [("weather", '{"city": "Oslo"}')]
    assert json.loads(example.tools) == [TOOL]
    words = "Let me look.\n" if record is MS_SWIFT else ""
    assert learned(processor("qwen25"), example)[0] == words + QWEN % "Oslo" + "<|im_end|>"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages[1]: a tool call without the name of its tool"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{city"}}]},
         "messages[1]: the arguments of the tool call 'f' are not an object in JSON"),
        ({"role": "function_call", "content": "weather(Oslo)"},
         "messages[1]: the content of a function_call turn must be JSON: name and arguments"),
        ({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
         "messages[1]: tool_calls in a turn of the user: only the assistant calls tools"),
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
         "messages[1]: content has a part of the type image_url; only text can be used"),
        ({"role": "assistant", "content": "x", "images": ["a.png"]},
         "messages[1]: images changes what the turn means, and it cannot be used"),
        ({"role": "assistant", "content": None, "refusal": "No."},
         "messages[1]: refusal changes what the turn means, and it cannot be used"),
        ({"role": "assistant", "content": "x", "prefix": True},
         "messages[1]: prefix changes what the turn means, and it cannot be used"),
        ({"role": "assistant", "content": "x", "reasoning_content": [1]}, "messages[1]: its reasoning is a list, not text"),
    ],
)  # fmt: skip
def test_unusable_turn_is_named(message: dict, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        chat({"messages": [{"role": "user", "content": "hi"}, message]})
    assert str(error.value) == reason


def test_tools_that_are_none() -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    for tools in ("[]", [], None, "", float("nan")):
        assert chat({"messages": turns, "tools": tools}).tools == ""
    with pytest.raises(ValueError, match="tools is not a list of tools in JSON"):
        chat({"messages": turns, "tools": "weather"})


def test_content_in_parts() -> None:
    parts = [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turn = chat({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": parts}]}).turns[1]
    assert (turn.content, turn.reasoning) == ("a\nb", "so")


def test_system_message_that_the_template_writes_into_the_last_question_only() -> None:
    """Mistral's: an answered question is rendered without it. The row is the prompt of generation and the answer."""
    said = [("system", "Be kind."), ("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", "2")]
    turns = [{"role": role, "content": content} for role, content in said]
    made, example = processor("mistral"), chat({"messages": turns})
    rows = [made.tokenizer.decode(row.ids) for row in made.chat(example.turns)]
    assert rows == [
        "<s>[INST] Be kind.\n\nOne?[/INST] 1</s>",
        "<s>[INST] One?[/INST] 1</s>[INST] Be kind.\n\nTwo?[/INST] 2</s>",
    ]
    assert learned(made, example) == [" 1</s>", " 2</s>"]
    assert {x.level for x in check_chats([example], made)} == {"fine"}
