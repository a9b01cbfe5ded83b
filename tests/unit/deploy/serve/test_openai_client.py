"""The official client of OpenAI, unchanged, is the judge of our routes."""

import json
from collections.abc import Iterator

import openai
import pytest

from support.runs import finished_run
from support.serving import LocalServer, serving
from weitiao.pipeline.serving import open_served, read_targets

HELLO = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with serving(open_served(read_targets([f"tiny={finished_run()}"]))) as server:
        yield server


@pytest.fixture
def client(server: LocalServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_models_are_the_adapter_and_its_base(client: openai.OpenAI) -> None:
    assert [x.id for x in client.models.list()] == ["tiny", "llama"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_chat_says_what_generate_says(client: openai.OpenAI) -> None:
    from weitiao import load

    expected = load(finished_run()).generate(HELLO, max_new_tokens=12)
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=12)
    assert answer.choices[0].message.content.strip() == expected
    assert answer.usage.completion_tokens <= 12 and answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_adapter_and_base_differ(client: openai.OpenAI) -> None:
    texts = [client.chat.completions.create(model=x, messages=HELLO, max_tokens=16) for x in ("tiny", "llama")]
    assert texts[0].choices[0].message.content != texts[1].choices[0].message.content


def test_stream_joins_to_the_whole(client: openai.OpenAI) -> None:
    settings = {"model": "tiny", "messages": HELLO, "max_tokens": 16, "temperature": 1.0, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**settings)
    pieces, reasons, usage = ["", ""], {}, None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert pieces == [x.message.content for x in whole.choices]
    assert reasons == {x.index: x.finish_reason for x in whole.choices}
    assert usage == whole.usage and pieces[0] != pieces[1]


def test_seed_repeats_and_n_differs(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt="the", max_tokens=12, temperature=1.0, seed=seed, n=3)
        return [x.text for x in answer.choices]

    assert texts(1) == texts(1) != texts(2) and len(set(texts(1))) > 1


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for x in tokens:
        assert len(x.top_logprobs) == 3 and x.logprob == x.top_logprobs[0].logprob <= 0  # greedy: the most probable
    spelled = b"".join(bytes(x.bytes) for x in tokens).decode("utf-8", "replace")
    assert spelled.replace("\ufffd", "") == answer.choices[0].message.content.replace("\ufffd", "")


def test_stop_ends_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="llama", messages=HELLO, max_tokens=16).choices[0].message.content
    stop = whole[2:4]
    cut = client.chat.completions.create(model="llama", messages=HELLO, max_tokens=16, stop=[stop]).choices[0]
    assert cut.finish_reason == "stop" and cut.message.content == whole[: whole.index(stop)]


def test_completions_of_several_prompts(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=["the fox", "boxes"], n=2, max_tokens=4, logprobs=2)
    assert [x.index for x in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text != answer.choices[2].text  # greedy
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 4


def test_token_ids_as_prompt(client: openai.OpenAI, server: LocalServer) -> None:
    ids = server.service.served.encode_text("the fox")
    by_ids = client.completions.create(model="tiny", prompt=ids, max_tokens=6).choices[0].text
    assert by_ids == client.completions.create(model="tiny", prompt="the fox", max_tokens=6).choices[0].text


def test_logit_bias_forces_a_token(client: openai.OpenAI, server: LocalServer) -> None:
    token = server.service.served.encode_text("fox")[0]
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=3, logit_bias={str(token): 100})
    assert answer.choices[0].text == server.service.served.token_text(token).text * 3


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, "model"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "boss", "content": "x"}]}, openai.BadRequestError, "messages.0.role"),
        ({"temperature": 2.5}, openai.BadRequestError, "temperature"),
        ({"top_logprobs": 3}, openai.BadRequestError, "top_logprobs"),
        ({"n": 5}, openai.BadRequestError, "n"),
        ({"max_tokens": 10**7}, openai.BadRequestError, "max_tokens"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, "logit_bias"),
        ({"extra_body": {"max_token": 5}}, openai.BadRequestError, "max_token"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
    ],
)
def test_errors_have_openais_form(client: openai.OpenAI, change: dict, error: type, param: str) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 4, **change})
    assert caught.value.param == param and caught.value.body["message"]
    assert "/" not in caught.value.body["message"].replace("GET /v1/models", "")


def test_a_prompt_without_room_is_refused(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "fox " * 400}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", messages=long, stream=stream)


def test_async_client_and_page(server: LocalServer) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = [client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8) for _ in range(12)]
            return [x.choices[0].message.content for x in await asyncio.gather(*asked)]

    assert len(set(asyncio.run(ask()))) == 1


def test_open_api_lists_the_routes(server: LocalServer) -> None:
    document = json.loads(server.request("GET", "/openapi.json")[2])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/health"} <= document["paths"].keys()
