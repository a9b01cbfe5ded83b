"""A real server on a loopback port, in a thread of the test process, and raw requests to it."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from weitiao.deploy.serve.access import Access
from weitiao.deploy.serve.app import make_app
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.served_model import ServedModel
from weitiao.deploy.serve.server import Server, open_socket
from weitiao.deploy.serve.service import Service

KEY = "test-key-0123456789abcdef"


@dataclass
class LocalServer:
    """A running server."""

    port: int
    service: Service
    app: FastAPI
    key: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, dict[str, str], bytes]:
        """One request with exactly these headers (Host, key and JSON unless they are given): status, headers, body."""
        own = {"Host": f"127.0.0.1:{self.port}", "Connection": "close"}
        if self.key:
            own["Authorization"] = f"Bearer {self.key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            own |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        merged = {key: value for key, value in {**own, **(headers or {})}.items() if value is not None}
        head = "".join(f"{key}: {value}\r\n" for key, value in merged.items())
        return self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""), timeout)

    def raw(self, data: bytes, timeout: float = 30) -> tuple[int, dict[str, str], bytes]:
        """Bytes as they are; status 0: the connection was closed without an answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            with suppress(OSError):  # refused while it was sent: the answer tells
                connection.sendall(data)
            return read_response(connection)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """(status, what the JSON says)."""
        status, _, content = self.request("POST", path, body, headers)
        return status, json.loads(content) if content else None

    def get(self, path: str) -> Any:
        """What a GET says."""
        status, _, content = self.request("GET", path)
        assert status == 200, content
        return json.loads(content)

    def wait_idle(self, seconds: float = 1.0) -> float:
        """Seconds until no slot is in use; fails after `seconds`."""
        started = time.monotonic()
        while self.service.thread.load.running or self.service.thread.load.waiting or self.service.thread.num_open:
            assert time.monotonic() - started < seconds, f"still busy after {seconds} s: {self.service.thread.load}"
            time.sleep(0.005)
        return time.monotonic() - started


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read until the server closes the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except OSError:
        pass
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not head:
        return 0, {}, b""
    headers = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines[1:])}
    return (
        int(lines[0].split()[1]),
        headers,
        _unchunked(body) if "chunked" in headers.get("transfer-encoding", "") else body,
    )


def _unchunked(body: bytes) -> bytes:
    content = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            break
        content, body = content + body[:n], body[n + 2 :]
    return content


@contextmanager
def serving(served: ServedModel, key: str = "", access: Access | None = None, **limits: Any) -> Iterator[LocalServer]:
    """Inside, a model is served."""
    own_limits = Limits(**limits)
    service = Service.make(served, own_limits)
    app = make_app(service, access or Access({"key": key} if key else {}))
    listener = open_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    server = Server(app, own_limits, service)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
        assert thread.is_alive()
    try:
        yield LocalServer(port, service, app, key)
    finally:
        server.should_exit = True
        thread.join(10)
