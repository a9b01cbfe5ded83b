"""Other engines as a child process behind our front: vLLM for a model folder, llama.cpp for a GGUF file.

    client -> guard, schemas, limits (this process) -> 127.0.0.1, random port, random key -> engine (child)

The child listens on this machine only, with a key that nobody else knows: in its environment, not in its arguments, which
every user of the machine can list. It is started as a list of arguments without a shell, and ends with its parent.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx

from weitiao.core.errors import ModelError

QUIET = {  # telemetry of the engines and of what they import, and the hub
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
SECRETS = ("WEITIAO_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY")
START = 900.0  # seconds that a large model may take to load
PR_SET_PDEATHSIG = 1
CHILD = Path(__file__).with_name("llamacpp_child.py")


@dataclass(frozen=True)
class EngineCommand:
    """How an engine is started."""

    arguments: list[str]
    port: int
    key: str = field(repr=False)
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """Besides the parent's own."""


def vllm_command(folder: Path, name: str, port: int, key: str) -> EngineCommand:
    """vLLM for a merged model folder.

    Raises:
        ModelError: it is no model folder, or vLLM is not installed.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(
            "--engine vllm needs a model folder with config.json and safetensors: weitiao merge RUN FOLDER, then "
            "serve FOLDER"
        )
    program = shutil.which("vllm")
    if program is None:
        raise ModelError("--engine vllm: there is no program vllm. Install it with: pip install vllm")
    arguments = [
        program, "serve", str(folder.resolve()), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name,
        "--generation-config", "vllm", "--load-format", "safetensors", "--uvicorn-log-level", "warning",
        "--disable-fastapi-docs",
    ]  # fmt: skip
    return EngineCommand(arguments, port, key, {**QUIET, "VLLM_API_KEY": key})


def llamacpp_command(file: Path, name: str, port: int, key: str) -> EngineCommand:
    """llama.cpp for a GGUF file: its own server if that is installed, else xllamacpp in a process of its own.

    Raises:
        ModelError: it is no GGUF file, or neither is installed.
    """
    if not file.is_file() or file.read_bytes()[:4] != b"GGUF":
        raise ModelError("--engine llamacpp needs a GGUF file: weitiao export RUN --format gguf, then serve FILE")
    path, program = str(file.resolve()), shutil.which("llama-server")
    if program is not None:
        arguments = [program, "--model", path, "--host", "127.0.0.1", "--port", str(port), "--alias", name, "--no-webui"]
        return EngineCommand([*arguments, "--offline"], port, key, {**QUIET, "LLAMA_API_KEY": key})
    if find_spec("xllamacpp") is None:
        raise ModelError(
            "--engine llamacpp needs llama-server or xllamacpp. Install it with: pip install 'weitiao[llamacpp]'"
        )
    arguments = [sys.executable, str(CHILD), path, name, str(port)]
    return EngineCommand(arguments, port, key, {**QUIET, "LLAMA_API_KEY": key})


COMMANDS: dict[str, Callable[[Path, str, int, str], EngineCommand]] = {"vllm": vllm_command, "llamacpp": llamacpp_command}


def make_command(engine: str, target: str, name: str) -> EngineCommand:
    """The command of an engine, with a free port and a new key."""
    return COMMANDS[engine](Path(target).expanduser(), name, _free_port(), secrets.token_urlsafe(32))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def running(command: EngineCommand) -> Iterator[subprocess.Popen[bytes]]:
    """Inside, the engine runs and is healthy.

    Raises:
        ModelError: it ended before it answered, or was not ready in time.
    """
    environment = {key: value for key, value in os.environ.items() if key not in SECRETS} | command.environment
    child = subprocess.Popen(
        command.arguments, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=None,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None, start_new_session=True,
    )  # fmt: skip
    try:
        _wait_healthy(child, command)
        yield child
    finally:
        _stop(child)


def _end_with_parent() -> None:
    """Linux: the child gets SIGTERM when this process ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_healthy(child: "subprocess.Popen[bytes]", command: EngineCommand) -> None:
    until = time.monotonic() + START
    headers = {"Authorization": f"Bearer {command.key}"}
    with httpx.Client(base_url=f"http://127.0.0.1:{command.port}", headers=headers, trust_env=False) as client:
        while child.poll() is None and time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):  # it does not listen yet
                if client.get("/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.2)
    if child.poll() is None:
        raise ModelError("the engine was not ready within {seconds:g} seconds", seconds=START)
    raise ModelError("the engine ended with code {code} before it was ready; what it wrote is above", code=child.returncode)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End the child and what it has started."""
    for sig, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        try:
            os.killpg(child.pid, sig)
            child.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
