"""Tools and JSON: what the model writes in its own form comes back in OpenAI's; what must be JSON is."""

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from support.models import save_model
from support.serving import serving
from weitiao.deploy.serve.tool_calls import ToolCallReader, call_schema, read_calls, tool_format_of
from weitiao.pipeline.serving import open_served, read_targets

pytest.importorskip("llguidance")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Oslo", "Paris"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t.function.name }}{% endfor %}<tool_call><|im_end|>\n{% endif %}"  # noqa: E501
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "fox"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = save_model(tmp_path_factory.mktemp("served") / "llama", template=TEMPLATE)
    with serving(open_served(read_targets([f"tiny={folder}"]))) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_forced_tool_is_called(client: openai.OpenAI) -> None:
    """A model with random weights: only the grammar can make it write a call."""
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        settings = {
            "model": "tiny",
            "messages": HELLO,
            "tools": TOOLS,
            "tool_choice": choice,
            "max_tokens": 120,
            "temperature": 1.0,
            "seed": 1,
        }
        answer = client.chat.completions.create(**settings).choices[0]
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        (call,) = answer.message.tool_calls
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Paris")
        chunks = list(client.chat.completions.create(**settings, stream=True))
        streamed = [c for x in chunks for c in x.choices[0].delta.tool_calls or ()]
        assert [c.function.arguments for c in streamed] == [call.function.arguments]
        assert not "".join(x.choices[0].delta.content or "" for x in chunks)
        assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_call_and_its_result_go_back_into_the_conversation(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "tools": TOOLS, "max_tokens": 120, "temperature": 1.0, "seed": 1}
    answer = client.chat.completions.create(messages=HELLO, tool_choice="required", **settings).choices[0].message
    result = {"role": "tool", "tool_call_id": answer.tool_calls[0].id, "content": "sunny"}
    after = client.chat.completions.create(messages=[*HELLO, answer, result], **settings | {"max_tokens": 4})
    assert after.usage.prompt_tokens > 20


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["n"],
              "additionalProperties": False}  # fmt: skip
    format = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema, "strict": True}}
    for seed in range(5):
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, response_format=format, temperature=1.0, seed=seed, max_tokens=100
        )
        assert 1 <= json.loads(answer.choices[0].message.content)["n"] <= 9 and answer.choices[0].finish_reason == "stop"


def test_json_object(client: openai.OpenAI) -> None:
    for seed in range(5):
        answer = client.chat.completions.create(
            model="tiny", messages=HELLO, response_format={"type": "json_object"}, temperature=1.0, seed=seed, max_tokens=60
        ).choices[0]
        assert answer.message.content.lstrip().startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.message.content), dict)


def test_schemas_that_are_none(client: openai.OpenAI) -> None:
    for schema in (
        {"type": "nonsense"},
        {"$ref": "http://evil.test/x"},
        {"$ref": "file:///etc/passwd"},
        {"type": "object", "minProperties": "x"},
    ):
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", messages=HELLO, response_format=format, max_tokens=4)


def test_a_grammar_that_reaches_its_limit_is_an_error(client: openai.OpenAI) -> None:
    """It compiles, but after `{"a":[` llguidance keeps more than 2,000 items: the beginning is never given as an answer."""
    arrays = [{"type": "array", "items": {"const": i}} for i in range(1000)]
    schema = {"type": "object", "properties": {"a": {"anyOf": arrays}}, "required": ["a"], "additionalProperties": False}
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    settings = {"model": "tiny", "messages": HELLO, "response_format": format, "max_tokens": 200}
    with pytest.raises(
        openai.BadRequestError, match="limit of its grammar after .* not complete; ask with a simpler"
    ) as caught:
        client.chat.completions.create(**settings)
    assert caught.value.code == "grammar_limit" and caught.value.param == "response_format"
    with pytest.raises(openai.APIError, match="limit of its grammar"):
        list(client.chat.completions.create(**settings, stream=True))
    assert client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1).choices


CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
WRITTEN = {
    "hermes": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
    "llama3": json.dumps({"name": "weather", "parameters": {"city": "Oslo"}}),
    "mistral": f"[TOOL_CALLS]{json.dumps([CALL])}",
    "json": json.dumps(CALL),
}


@pytest.mark.parametrize("format", WRITTEN)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_however_the_text_comes(format: str, size: int) -> None:
    text, reader, content = WRITTEN[format], ToolCallReader(format), ""
    for i in range(0, len(text), size):
        content += reader.feed(text[i : i + size])
    rest, calls = reader.end()
    assert not (content + rest).strip()
    assert [(x["function"]["name"], json.loads(x["function"]["arguments"])) for x in calls] == [
        ("weather", {"city": "Oslo"})
    ]


@pytest.mark.parametrize("format", [*WRITTEN, ""])
@pytest.mark.parametrize("text", ["", "Hello.", "a < b and <tool", "<tool_call>{broken", "{ not json }", "[{", "[TOOL_CALLS] no", "{}", "[1]",  # noqa: E501
                                  '{"name": 5}', "<tool_call>[]</tool_call>", '{"name": "f", "arguments": "x"}'])  # fmt: skip # noqa: E501
def test_text_that_is_no_call_stays_text(format: str, text: str) -> None:
    reader = ToolCallReader(format)
    content = "".join(map(reader.feed, text))
    rest, calls = reader.end()
    assert content + rest == text and not calls


def test_text_before_a_call_is_passed_on_at_once() -> None:
    reader = ToolCallReader("hermes")
    assert reader.feed("I look. ") == "I look. " and reader.feed("<tool") == "" and reader.feed(WRITTEN["hermes"][5:]) == ""
    assert reader.end()[1]


def test_several_calls() -> None:
    assert len(read_calls("hermes", WRITTEN["hermes"] * 2)[0]) == 2
    assert len(read_calls("mistral", f"[TOOL_CALLS]{json.dumps([CALL, CALL])}")[0]) == 2


def test_formats_of_templates(tmp_path: Path) -> None:
    from support.agent_templates import __file__ as templates

    assert tool_format_of(TEMPLATE) == "hermes" and tool_format_of("{{ messages }}") == "" and Path(templates).exists()
    assert call_schema(TOOLS)["properties"]["name"] == {"const": "weather"}
    assert "anyOf" in call_schema(TOOLS * 2)
