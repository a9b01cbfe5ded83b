"""uvicorn, with limits on slow clients and an end that lets running answers finish.

SIGTERM     no new connection, /ready and new requests get 503, running answers finish, exit code 0
Ctrl-C      the same; twice: at once
"""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from weitiao.core.errors import ModelError
from weitiao.deploy.serve.app import Guarded
from weitiao.deploy.serve.limits import Limits


class Server(uvicorn.Server):
    """A server that ends with exit code 0 when it is told to."""

    def __init__(self, app: Any, limits: Limits, service: Guarded) -> None:
        config = uvicorn.Config(
            app, http=_protocol(limits), ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
            proxy_headers=False, timeout_keep_alive=max(1, round(limits.keep_alive)),
            timeout_graceful_shutdown=max(1, round(limits.drain_timeout)), limit_concurrency=limits.max_connections,
            h11_max_incomplete_event_size=limits.max_header_bytes, backlog=256,
        )  # fmt: skip
        super().__init__(config)
        logging.getLogger("uvicorn.access").disabled = True  # it writes what the client asked for
        self.service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As uvicorn, but afterwards the signal is not raised again: being told to end is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {x: signal.signal(x, self.handle_exit) for x in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for x, handler in before.items():
                signal.signal(x, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Refuse new requests, and let the running ones finish."""
        self.service.is_draining = True
        super().handle_exit(sig, frame)


def _protocol(limits: Limits) -> type[H11Protocol]:
    """HTTP/1.1 that closes a connection whose headers do not come in time (slow loris)."""

    class TimedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._disarm()  # headers are complete; the guard watches the body
            elif self._header_timer is None:
                self._arm()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._disarm()  # uvicorn's keep-alive timer is on now

        def _arm(self) -> None:
            self._header_timer = self.loop.call_later(limits.read_timeout, self._close_slow)

        def _disarm(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _close_slow(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return TimedProtocol


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the model is loaded: a port that is taken is said at once.

    Raises:
        ModelError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError("cannot listen on {host} port {port}: {reason}", host=host, port=port, reason=reason) from None
    return listener
