"""A model that has learnt to call a tool in its own template's form (Qwen 2.5), asked by OpenAI's client, no grammar."""

import json
from collections.abc import Iterator

import openai
import pytest

from support.agent_templates import QWEN25
from support.models import save_model
from support.runs import overfitted_model
from support.serving import serving
from weitiao.pipeline.serving import open_served, read_targets

TOOLS = [
    {
        "type": "function",
        "function": {"name": "sky", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]


def row(city: str, sky: str) -> dict:
    call = {"id": "1", "type": "function", "function": {"name": "sky", "arguments": json.dumps({"city": city})}}
    asked = [{"role": "user", "content": f"{city}?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    told = [{"role": "tool", "tool_call_id": "1", "content": sky}, {"role": "assistant", "content": f"It is {sky}."}]
    return {"messages": [*asked, *told], "tools": TOOLS}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    place = tmp_path_factory.mktemp("caller")
    base = save_model(place / "base", template=QWEN25)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}), encoding="utf-8")
    taught = overfitted_model(place, base, [row("Oslo", "grey"), row("Rome", "blue")] * 4)
    with serving(open_served(read_targets([f"tiny={taught}"]))) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize(("city", "sky"), [("Oslo", "grey"), ("Rome", "blue")])
def test_a_call_its_result_and_the_answer(client: openai.OpenAI, city: str, sky: str) -> None:
    asked = [{"role": "user", "content": f"{city}?"}]
    settings = {"model": "tiny", "tools": TOOLS, "max_tokens": 120}
    choice = client.chat.completions.create(messages=asked, **settings).choices[0]
    assert choice.finish_reason == "tool_calls" and not choice.message.content, choice
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("sky", {"city": city})
    told = {"role": "tool", "tool_call_id": call.id, "content": sky}
    after = client.chat.completions.create(messages=[*asked, choice.message, told], **settings).choices[0]
    assert (after.finish_reason, after.message.content) == ("stop", f"It is {sky}.")

    chunks = list(client.chat.completions.create(messages=asked, stream=True, **settings))
    (streamed,) = [c for x in chunks for c in x.choices[0].delta.tool_calls or ()]
    assert json.loads(streamed.function.arguments) == {"city": city} and streamed.id
    assert not "".join(x.choices[0].delta.content or "" for x in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
