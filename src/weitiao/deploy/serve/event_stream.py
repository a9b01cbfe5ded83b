"""Server-sent events, and answers that end when nobody waits for them any more."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from weitiao.deploy.serve.api_errors import ApiError, failed
from weitiao.deploy.serve.model_thread import log_failure

Value = TypeVar("Value")
Send = Callable[[Any], Awaitable[None]]
DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """
    >>> event({"a": 1})
    b'data: {"a":1}\\n\\n'
    """
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Value]) -> Value:
    """What the work gives; a client that leaves cancels it.

    Raises:
        ClientDisconnect: it has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or task.cancelled():
            raise ClientDisconnect
        return task.result()
    finally:
        await _ended(task)
        await _ended(gone)


async def _ended(task: "asyncio.Future[Any]") -> None:
    """Cancel until it has ended: asyncio.wait_for may swallow one cancellation (Python < 3.12)."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Events as they come. The client's leaving, or its not reading, ends what makes them."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], write_timeout: float) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}, media_type=self.media_type)
        del self.headers["content-length"]
        self.events, self.write_timeout = events, write_timeout

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        """Send events until they end; an error among them is an event of its own."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await until_disconnect(Request(scope, receive), self._send_all(send))
        except ClientDisconnect:
            return
        finally:
            await self.events.aclose()

    async def _send_all(self, send: Send) -> None:
        try:
            async for data in self.events:
                await self._send(send, data)
            await self._send(send, DONE)
        except ApiError as error:
            await self._send(send, event(error.body()))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log_failure("a stream failed", error)
            await self._send(send, event(failed().body()))
        await self._send(send, b"", last=True)

    async def _send(self, send: Send, data: bytes, last: bool = False) -> None:
        task = asyncio.current_task()
        assert task is not None
        timer = asyncio.get_running_loop().call_later(self.write_timeout, task.cancel)
        try:
            await send({"type": "http.response.body", "body": data, "more_body": not last})
        finally:
            timer.cancel()
