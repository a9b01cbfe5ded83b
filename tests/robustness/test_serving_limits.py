"""What one request may cost: bodies, numbers, texts at and beyond each limit; hostile templates and messages."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.models import save_model
from support.serving import LocalServer, read_response, serving
from weitiao.core.errors import DataError
from weitiao.core.example import Turn
from weitiao.data.chat.template import Template
from weitiao.pipeline.serving import open_served, read_targets

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "fox"}], "max_tokens": 1}
TEXT = {"model": "tiny", "prompt": "fox", "max_tokens": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    served = open_served(read_targets([f"tiny={save_model(tmp_path_factory.mktemp('served') / 'llama')}"]))
    with serving(served, max_body_bytes=1_000_000, read_timeout=2.0, request_timeout=60) as server:
        yield server


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def limits() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, a body at the limit, the same beyond it)."""
    message, tool = CHAT["messages"][0], {"type": "function", "function": {"name": "f"}}
    deep = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": nested(28)}}}
    deeper = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": nested(30)}}}
    return [
        ("messages", CHAT | {"messages": [message] * 20}, CHAT | {"messages": [message] * 513}),
        ("n", CHAT | {"n": 4}, CHAT | {"n": 5}),
        ("n of texts", TEXT | {"n": 4}, TEXT | {"n": 5}),
        ("max_tokens", CHAT | {"max_tokens": 256, "stop": ["a", "e", "o", " ", "t"]}, CHAT | {"max_tokens": 257}),
        ("stop", CHAT | {"stop": ["x"] * 16}, CHAT | {"stop": ["x"] * 17}),
        ("stop length", CHAT | {"stop": "x" * 256}, CHAT | {"stop": "x" * 257}),
        ("logit_bias", CHAT | {"logit_bias": {str(i): 1 for i in range(300)}}, CHAT | {"logit_bias": {str(i): 1 for i in range(301)}}),  # noqa: E501
        ("token id", TEXT | {"prompt": [319]}, TEXT | {"prompt": [320]}),
        ("bias of a token", TEXT | {"logit_bias": {"319": 1}}, TEXT | {"logit_bias": {"320": 1}}),
        ("temperature", CHAT | {"temperature": 2}, CHAT | {"temperature": 2.0001}),
        ("top_p", CHAT | {"top_p": 1}, CHAT | {"top_p": 1.0001}),
        ("top_p above 0", CHAT | {"top_p": 1e-9}, CHAT | {"top_p": 0}),
        ("top_logprobs", CHAT | {"logprobs": True, "top_logprobs": 20}, CHAT | {"logprobs": True, "top_logprobs": 21}),
        ("logprobs of texts", TEXT | {"logprobs": 20}, TEXT | {"logprobs": 21}),
        ("seed", CHAT | {"seed": 2**63 - 1}, CHAT | {"seed": 2**63}),
        ("tools", CHAT | {"tools": [tool] * 128, "tool_choice": "none"}, CHAT | {"tools": [tool] * 129, "tool_choice": "none"}),  # noqa: E501
        ("prompts", TEXT | {"prompt": ["fox"] * 60}, TEXT | {"prompt": ["fox"] * 257}),
        ("queue", TEXT | {"prompt": ["fox"] * 96}, TEXT | {"prompt": ["fox"] * 97}),
        ("prompt length", TEXT | {"prompt": [5] * 255}, TEXT | {"prompt": [5] * 256}),
        ("depth", CHAT | {"response_format": deep}, CHAT | {"response_format": deeper}),
        ("name", CHAT | {"tools": [tool], "tool_choice": "none"}, CHAT | {"tools": [{"type": "function", "function": {"name": "a b"}}]}),  # noqa: E501
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "at", "beyond"), limits(), ids=[x[0] for x in limits()])
def test_limits_at_one_and_beyond(server: LocalServer, name: str, at: dict, beyond: dict) -> None:
    path = "/v1/completions" if "prompt" in at else "/v1/chat/completions"
    status, answer = server.post(path, at)
    if name == "depth":  # deep enough, though the engine may know no grammar
        assert status in (200, 400) and answer.get("error", {}).get("code") != "too_deep"
    else:
        assert status == 200, answer
    status, answer = server.post(path, beyond)
    assert 400 <= status < 500 and set(answer["error"]) == {"message", "type", "param", "code"}, answer


def test_body_at_the_limit_and_beyond(server: LocalServer) -> None:
    def body(size: int) -> bytes:
        plain = json.dumps(CHAT | {"user": ""}).encode()
        return json.dumps(CHAT | {"user": "x" * (size - len(plain))}).encode()

    assert len(body(1_000_000)) == 1_000_000
    assert server.request("POST", "/v1/chat/completions", body(1_000_000))[0] == 200
    for headers in ({}, {"Content-Length": None, "Transfer-Encoding": "chunked"}):
        content = body(1_000_001)
        if headers:
            content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content)
        status, _, answer = server.request("POST", "/v1/chat/completions", content, headers)
        assert status == 413 and json.loads(answer)["error"]["code"] == "too_large"


def test_a_hundred_megabytes(server: LocalServer) -> None:
    status, _, _ = server.request("POST", "/v1/chat/completions", b"x" * 100_000_000)
    assert status == 413


def test_headers_at_the_limit_and_beyond(server: LocalServer) -> None:
    assert server.request("GET", "/health", headers={"X-Long": "x" * 16_000})[0] == 200
    for headers in ({"X-Long": "x" * 17_000}, {"X-Long": "x" * 1_000_000}, {f"X-{i}": "y" * 50 for i in range(400)}):
        assert server.request("GET", "/health", headers=headers)[0] in (0, 400, 431)  # 0: closed while it was sending
    assert server.request("GET", "/" + "a" * 20_000)[0] in (0, 400, 414, 431)
    assert server.request("GET", "/health")[0] == 200


MALFORMED = [
    b"", b"{", b"}", b"[]", b"null", b"1", b'"x"', b"{}", b'{"model": "tiny"', b'{"model": tiny}', b"\x00", b"\xff\xfe",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', b'{"model": "tiny\\u0000", "messages": []}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": true}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": "5"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1.5}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": 5}]}', b'{"model": "tiny", "messages": "x"}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x", "extra": 1}]}', b"[" * 100_000, b'{"a":' * 50_000,
    b'{"model": "tiny", "messages": [{"role": "tool", "content": "x"}, {"role": "assistant", "tool_calls": []}], "max_tokens": 1}',  # noqa: E501
    b'{"model": "tiny", "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}',  # noqa: E501
    b'{"model": "tiny", "messages": [{"role": "user"}]}', b"{" + b'"model": "tiny",' * 3 + b'"messages": []}',
    b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"-1": 1, "1e3": 1, "\xd9\xa1": 1}}',
]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/classify", "/v1/adapters/load"]
)
def test_malformed_bodies(server: LocalServer, path: str) -> None:
    for body in MALFORMED:
        status, headers, answer = server.request("POST", path, body)
        assert 400 <= status < 500, (body[:80], status, answer)
        assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}
        assert b"Traceback" not in answer and b"site-packages" not in answer


def test_random_bodies(server: LocalServer, full: bool) -> None:
    """Requests with pieces changed at random: never a 5xx, never silence."""
    rng = random.Random(1)
    parts = [
        '"',
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "null",
        "true",
        "-1",
        "1e400",
        "\\u0000",
        "\\ud83d",
        "tiny",
        "{{7*7}}",
        "\n",
        "<|im_end|>",
    ]
    for _ in range(10_000 if full else 300):
        text = json.dumps(rng.choice([CHAT, TEXT, CHAT | {"stream": True}, CHAT | {"tools": []}]))
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(parts) + text[at + rng.randint(0, 4) :]
        status, _, _ = server.request("POST", rng.choice(["/v1/chat/completions", "/v1/completions"]), text.encode())
        assert 200 <= status < 500, (text, status)


def test_slow_loris(server: LocalServer) -> None:
    """Connections that send a byte now and then are closed, and others are answered meanwhile."""
    before = threading.active_count()
    connections = [socket.create_connection(("127.0.0.1", server.port), 30) for _ in range(200)]
    for i, connection in enumerate(connections):
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + (b"X: y" if i % 2 else b""))
    for connection in connections[:20]:  # these have sent their headers, and now a byte of their body
        connection.sendall(b"\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n{")
    started = time.monotonic()
    assert server.post("/v1/chat/completions", CHAT)[0] == 200
    assert time.monotonic() - started < 1.5
    statuses = [read_response(x)[0] for x in connections]
    assert time.monotonic() - started < 3 * 2.0 + 3 and set(statuses) <= {0, 400, 408, 415}
    assert threading.active_count() <= before + 8
    for connection in connections:
        connection.close()


def test_time_for_an_answer_is_limited(tmp_path) -> None:
    served = open_served(read_targets([f"tiny={save_model(tmp_path / 'llama')}"]))
    with serving(served, request_timeout=0.15) as server:
        long = TEXT | {"max_tokens": 255, "ignore_eos": True, "prompt": ["fox"] * 32}
        assert server.post("/v1/completions", long)[0] == 503
        status, _, events = server.request("POST", "/v1/completions", long | {"stream": True})
        assert (status == 200 and b'"code":"timeout"' in events and b"[DONE]" not in events) or status == 503
        server.wait_idle()
        assert server.post("/v1/completions", TEXT)[0] == 200


def test_full_queue_is_429(server: LocalServer) -> None:
    long = TEXT | {"max_tokens": 250, "ignore_eos": True, "prompt": ["fox"] * 96, "stream": True}
    connection = socket.create_connection(("127.0.0.1", server.port), 30)
    body = json.dumps(long).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"  # noqa: E501
    connection.sendall(head.encode() + body)
    connection.recv(100)  # it runs
    status, headers, answer = server.request("POST", "/v1/completions", TEXT)
    assert status == 429 and headers["retry-after"] == "1" and json.loads(answer)["error"]["type"] == "rate_limit_error"
    assert server.request("GET", "/ready")[0] == 503 and server.request("GET", "/health")[0] == 200
    connection.close()
    server.wait_idle(2.0)
    assert server.post("/v1/completions", TEXT)[0] == 200


# -- templates --------------------------------------------------------------------------------------------------------

BOMBS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{{ 'a' * 4000000000 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ range(99999) | map('string') | list | join('x' * 1000) | length }}{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",  # noqa: E501
    "{% for i in range(99999) %}{{ messages | tojson }}{% for j in range(9999) %}{{ 'x' }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = range(99999) | list | sort | reverse | list %}{% endfor %}",
    "{{ '%99999999999d' % 1 }}",
    "{% for i in range(99999) %}{{ ('ab' * 5000).replace('a', 'b' * 500) | length }}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_template_bombs_end_in_a_thread(bomb: str) -> None:
    """The server renders outside the main thread, where a signal cannot stop a template."""
    outcome: list[Any] = []

    def render() -> None:
        started = time.thread_time()
        try:
            Template(bomb, {}).render([Turn("user", "x")], ask=True)
            outcome.append("rendered")
        except DataError as error:
            outcome.append(error)
        outcome.append(time.thread_time() - started)

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "the template still runs"
    assert isinstance(outcome[0], DataError) and outcome[1] <= 1.5, outcome


def test_messages_cannot_make_the_server_slow(server: LocalServer) -> None:
    def seconds(messages: list) -> float:
        started = time.process_time()
        status, _ = server.post("/v1/chat/completions", CHAT | {"messages": messages})
        assert status in (200, 400)
        return time.process_time() - started

    texts = [
        "{{ 7 * 7 }}",
        "{% for i in range(99999) %}{% endfor %}",
        "<|im_end|>" * 400,
        "a" * 4000,
        "a" * 900_000,
        " " * 4000,
    ]
    texts += ["\u0301" * 2000, "<" * 4000, "fox " * 225_000, "{" * 4000, "\U0001f469\u200d" * 2000]
    for text in texts:
        assert seconds([{"role": "user", "content": text}]) <= 1.5, text[:20]
    many = [{"role": "user", "content": "xyz"}, {"role": "assistant", "content": "y"}] * 256
    assert seconds(many) <= 1.5
    encode = server.service.served.encode_chat
    literal = encode([{"role": "user", "content": "{{ 7 * 7 }}"}], [], "", 8)[0]
    assert "49" not in "".join(server.service.served.token_text(x).text for x in literal)
