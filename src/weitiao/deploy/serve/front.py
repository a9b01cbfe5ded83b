"""Our front before another engine: the same guard, schemas and limits; what passes them goes to the child with its key."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from weitiao.core.messages import Message
from weitiao.deploy.serve.access import Access
from weitiao.deploy.serve.api_errors import ApiError, busy, failed, invalid
from weitiao.deploy.serve.app import with_guard
from weitiao.deploy.serve.chat_page import page_routes
from weitiao.deploy.serve.child_engine import EngineCommand
from weitiao.deploy.serve.completion_schema import ChatRequest, CompletionRequest, GenerationBody, num_answers
from weitiao.deploy.serve.event_stream import EventStream, until_disconnect
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.served_model import ROUTES
from weitiao.deploy.serve.server_metrics import ServerMetrics

CONNECT = 5.0  # seconds


class Front:
    """What stands before an engine."""

    def __init__(self, name: str, command: EngineCommand, limits: Limits) -> None:
        self.name, self.limits, self.metrics = name, limits, ServerMetrics()
        self.is_draining = False
        self.num_open = 0
        self.started = int(time.time())
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{command.port}",
            headers={"Authorization": f"Bearer {command.key}"},
            timeout=httpx.Timeout(limits.request_timeout, connect=CONNECT),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # no proxy of the environment stands between us and our child
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        yield
        await self.client.aclose()

    @contextlib.contextmanager
    def counted(self) -> Any:
        """Inside, one more answer is open; 429 if there are too many."""
        if self.num_open >= self.limits.max_queue + 1:
            raise busy("{n} answers are running or waiting, which is as many as can: try again", n=self.num_open)
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1


def make_front(front: Front, access: Access) -> FastAPI:
    """The routes that both engines have, behind the guard."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Any:
        """Whether the engine answers."""
        try:
            healthy = (await front.client.get("/health", timeout=CONNECT)).status_code == 200
        except httpx.HTTPError:
            healthy = False
        return JSONResponse({"status": "ok" if healthy else "failing"}, 200 if healthy else 503)

    @router.get("/v1/models")
    def models() -> Any:
        """The one model."""
        facts = {
            "object": "model",
            "created": front.started,
            "owned_by": "weitiao",
            "abilities": ["generate"],
            "routes": [ROUTES["generate"]],
        }
        return {"object": "list", "data": [{"id": front.name, **facts}]}

    @router.get("/metrics")
    def metrics() -> Response:
        """Counters for Prometheus."""
        front.metrics.running.set(front.num_open)
        return Response(front.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: HttpRequest) -> Any:
        """Answer a conversation."""
        if len(body.messages) > front.limits.max_messages:
            raise invalid("more than {n:,} messages", "messages", n=front.limits.max_messages)
        return await _pass_on(front, "/v1/chat/completions", body, request)

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: HttpRequest) -> Any:
        """Continue a text."""
        return await _pass_on(front, "/v1/completions", body, request)

    return with_guard((router, page_routes()), front.lifespan, access, front)


async def _pass_on(front: Front, path: str, body: GenerationBody, request: HttpRequest) -> Any:
    if body.model != front.name:
        message = Message("there is no such model here; GET /v1/models lists them")
        raise ApiError(404, message, "model_not_found", "model")
    if (body.n or 1) > front.limits.max_n:
        raise invalid("n is {n}; this server gives {most} answers at most", "n", n=body.n, most=front.limits.max_n)
    request.scope["state"]["share"].take(num_answers(body))
    request.scope["state"]["facts"]["model"] = front.name
    content = body.model_dump(exclude_none=True, by_alias=True)
    content.setdefault("temperature", 0.0)
    if not {"max_tokens", "max_completion_tokens"} & content.keys():
        content["max_tokens"] = front.limits.default_new_tokens
    if body.stream:
        stream = _events(front, path, content)
        first = await until_disconnect(request, anext(stream))
        return EventStream(_chained(first, stream), front.limits.write_timeout)
    with front.counted():
        answer = await until_disconnect(request, _ask(front, path, content))
    return JSONResponse(answer.json())


async def _ask(front: Front, path: str, content: dict[str, Any]) -> httpx.Response:
    try:
        answer = await asyncio.wait_for(front.client.post(path, json=content), front.limits.request_timeout)
    except (asyncio.TimeoutError, httpx.TimeoutException):
        raise _timeout(front) from None
    except httpx.HTTPError:
        raise _gone() from None
    _check(answer.status_code)
    return answer


async def _events(front: Front, path: str, content: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    """The engine's events, without its last: ours follows."""
    until = time.monotonic() + front.limits.request_timeout
    try:
        with front.counted():
            async with front.client.stream("POST", path, json=content) as answer:
                _check(answer.status_code)
                async for line in answer.aiter_lines():
                    if time.monotonic() > until:
                        raise _timeout(front)
                    if line.startswith("data: ") and line != "data: [DONE]":
                        yield line.encode() + b"\n\n"
    except httpx.TimeoutException:
        raise _timeout(front) from None
    except httpx.HTTPError:
        raise _gone() from None


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()


def _check(status: int) -> None:
    """What the engine refuses is refused; its own words may hold paths, so they stay inside."""
    if 400 <= status < 500:
        raise ApiError(400, Message("the engine refuses this request (status {status})", status=status), "invalid_value")
    if status >= 500:
        raise failed()


def _gone() -> ApiError:
    return ApiError(503, Message("the engine does not answer"), "engine_down", headers={"Retry-After": "5"})


def _timeout(front: Front) -> ApiError:
    seconds = front.limits.request_timeout
    return ApiError(503, Message("the answer took longer than {seconds:g} seconds", seconds=seconds), "timeout")
