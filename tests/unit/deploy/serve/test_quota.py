"""Several keys: each has a name in the log and a share of its own; one that asks without end does not starve the others."""

import json
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from support.models import save_model
from support.serving import LocalServer, serving
from weitiao.core.errors import ModelError
from weitiao.deploy.serve.access import Access
from weitiao.deploy.serve.api_errors import ApiError
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.quota import Quota
from weitiao.pipeline.server import KEY as VARIABLE
from weitiao.pipeline.server import ServeOptions, read_access
from weitiao.pipeline.serving import open_served, read_targets

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdefgh"
KEYS = Access({"alice": ALICE, "bob": BOB})
TEXT = {"model": "tiny", "prompt": "fox", "max_tokens": 2}
LONG = TEXT | {"max_tokens": 250, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    return open_served(read_targets([f"tiny={save_model(tmp_path_factory.mktemp('served') / 'llama')}"]))


def ask(server: LocalServer, key: str, body: dict) -> tuple[int, dict[str, str], dict]:
    status, headers, answer = server.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}"})
    return status, headers, json.loads(answer)


def held(server: LocalServer, key: str, n: int) -> socket.socket:
    """A connection on which n answers run."""
    body = json.dumps(LONG | {"prompt": ["fox"] * n}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), 30)
    headers = ("Host: localhost", f"Authorization: Bearer {key}", "Content-Type: application/json")
    head = "\r\n".join(("POST /v1/completions HTTP/1.1", *headers, f"Content-Length: {len(body)}"))
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    connection.recv(200)
    return connection


def test_answers_at_once(served) -> None:
    with serving(served, access=KEYS, max_parallel_requests=6) as server:
        connection = held(server, ALICE, 5)
        assert ask(server, ALICE, TEXT)[0] == 200
        status, headers, answer = ask(server, ALICE, TEXT | {"n": 2})
        assert status == 429 and headers["retry-after"] == "1" and answer["error"]["code"] == "rate_limit_exceeded"
        assert "5 answers open and asks for 2; it may have 6" in answer["error"]["message"]
        assert ask(server, BOB, TEXT | {"n": 4})[0] == 200, "another key has a share of its own"
        assert ask(server, BOB, TEXT | {"prompt": ["a"] * 7})[0] == 400, "waiting would not help"
        connection.close()
        server.wait_idle()
        assert ask(server, ALICE, TEXT | {"prompt": ["a"] * 6})[0] == 200


def test_requests_a_minute(served) -> None:
    with serving(served, access=KEYS, requests_per_minute=5) as server:
        statuses = [ask(server, ALICE, TEXT)[0] for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        _, headers, answer = ask(server, ALICE, TEXT)
        assert 1 <= int(headers["retry-after"]) <= 12 and "5 requests a minute" in answer["error"]["message"]
        assert ask(server, BOB, TEXT)[0] == 200
        assert server.request("GET", "/v1/models", headers={"Authorization": f"Bearer {ALICE}"})[0] == 200


def test_one_key_cannot_starve_another(served) -> None:
    """32 clients of one key never stop asking, and another key is always answered."""
    with serving(served, access=KEYS, max_parallel_requests=8, max_queue=16) as server:
        greedy: Counter = Counter()
        stop = threading.Event()

        def ask_on() -> None:
            while not stop.is_set():
                greedy[ask(server, ALICE, TEXT | {"prompt": ["fox"] * 4, "max_tokens": 20})[0]] += 1

        threads = [threading.Thread(target=ask_on) for _ in range(32)]
        for x in threads:
            x.start()
        others = [ask(server, BOB, TEXT)[0] for _ in range(20)]
        stop.set()
        for x in threads:
            x.join()
        assert others == [200] * 20 and greedy[429] and greedy[200] and set(greedy) == {200, 429}


def test_the_bucket_fills_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("weitiao.deploy.serve.quota.time.monotonic", lambda: now[0])
    quota = Quota(Limits(requests_per_minute=60))

    def allowed() -> int:
        for n in range(100):
            try:
                with quota.share("alice"):
                    pass
            except ApiError:
                return n
        return 100

    assert allowed() == 60
    now[0] = 10.0
    assert allowed() == 10
    now[0] = 1000.0
    assert allowed() == 60
    assert not quota._uses["alice"].answers


def test_the_log_names_the_key(served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving(served, access=KEYS) as server:
        assert ask(server, BOB, TEXT)[0] == 200
    assert "key=bob" in caplog.text and BOB not in caplog.text and ALICE not in caplog.text


def test_files_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, other = tmp_path / "keys", tmp_path / "other"
    file.write_text(f"# the team\nalice:{ALICE}\n\nbob:{BOB}\n", encoding="utf-8")
    other.write_text("0123456789abcdefghij\n", encoding="utf-8")
    keys = read_access(ServeOptions(["x"], api_key_files=[str(file), str(other)])).keys
    assert keys == {"alice": ALICE, "bob": BOB, "key-3": "0123456789abcdefghij"}
    for text, message in (
        (f"alice:{ALICE}\nalice:{BOB}", "twice"),
        (f"alice:{ALICE}\nbob:{ALICE}", "twice"),
        (f"a b:{ALICE}", "name of a key"),
        ("alice:short", "at least 16"),
        (f"{ALICE}+/=:alice", "at least 16"),
        ("# nothing", "no key"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=message) as caught:
            read_access(ServeOptions(["x"], api_key_files=[str(file)]))
        assert ALICE not in str(caught.value), "no key is written to the terminal"
    monkeypatch.setenv(VARIABLE, f"alice:{ALICE} bob:{BOB}")
    assert read_access(ServeOptions(["x"])).keys == {"alice": ALICE, "bob": BOB}
