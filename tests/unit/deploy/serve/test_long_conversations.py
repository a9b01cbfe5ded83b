"""A server leaves out the exchanges that training leaves out, and says which; without that choice it leaves out none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_jsonl
from support.serving import LocalServer, serving
from weitiao import load
from weitiao.core.run import Run
from weitiao.pipeline.prompting import as_turns
from weitiao.pipeline.serving import open_served, read_targets

MESSAGES = [
    message
    for k in range(10)
    for message in (
        {"role": "user", "content": f"the fox {k} and the lazy dog"},
        {"role": "assistant", "content": "seven boxes of liquor"},
    )
]
QUESTION = {"role": "user", "content": "what time is it"}


@pytest.fixture
def run(train_tiny: Any, tmp_path: Path) -> Run:
    rows = [{"messages": [*MESSAGES, QUESTION, {"role": "assistant", "content": f"paris {i}"}]} for i in range(8)]
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    return train_tiny(data=[{"path": str(file)}], max_length=150, overlong="drop_turns", train={"steps": 1})


@pytest.fixture
def server(run: Run) -> Iterator[LocalServer]:
    with serving(open_served(read_targets([f"tuned={run.folder}"]))) as server:
        yield server


def ask(server: LocalServer, messages: list[dict[str, str]], model: str = "tuned", **more: Any) -> tuple[int, Any]:
    body = {"model": model, "messages": messages, "max_tokens": 8, **more}
    return server.post("/v1/chat/completions", body)


def test_server_drops_what_the_model_drops(server: LocalServer, run: Run) -> None:
    expected = load(run).prompt(as_turns([*MESSAGES, QUESTION]), max_new_tokens=8)
    status, answer = ask(server, [*MESSAGES, QUESTION])
    assert status == 200 and answer["dropped_messages"] == list(expected.dropped) != []
    assert answer["usage"]["prompt_tokens"] == len(expected) <= 142
    assert "dropped_messages" not in ask(server, [QUESTION])[1]
    status, answer = ask(server, [*MESSAGES, QUESTION], model="llama")  # the base was not trained with it
    assert status == 400 and "shorten the prompt" in json.dumps(answer)
    status, answer = ask(server, [{"role": "user", "content": "the fox " * 400}])
    assert status == 400 and "the last message is too long" in json.dumps(answer)


def test_settings_say_that_exchanges_are_left_out(run: Run) -> None:
    lines = [str(x) for x in open_served(read_targets([f"tuned={run.folder}"])).settings]
    assert any("conversations with tuned of more than 150 tokens lose exchanges" in x for x in lines)
    refusing = open_served(read_targets([f"tuned={run.folder}"]), overlong="error")
    assert not any("lose exchanges" in str(x) for x in refusing.settings)

    assert refusing.encode_chat is not None
    assert refusing.encode_chat([*MESSAGES, QUESTION], (), "tuned", 8)[1] == ()
