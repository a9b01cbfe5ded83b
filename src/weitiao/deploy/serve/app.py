"""The server as an ASGI application: all routes, behind one guard."""

import contextlib
import re
from collections.abc import AsyncIterator, Iterable
from difflib import get_close_matches
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from weitiao.core.messages import Message
from weitiao.core.version import VERSION
from weitiao.deploy.serve.access import Access
from weitiao.deploy.serve.api_errors import ApiError, failed
from weitiao.deploy.serve.chat_page import page_routes
from weitiao.deploy.serve.completion_schema import ChatRequest, CompletionRequest
from weitiao.deploy.serve.completions import completion_routes
from weitiao.deploy.serve.guard import Guard
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.listing import listing_routes
from weitiao.deploy.serve.predictions import prediction_routes, retrieval_routes, transcription_routes
from weitiao.deploy.serve.server_metrics import ServerMetrics
from weitiao.deploy.serve.service import Service

NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI would export traces to wherever the environment says; older ones do not know the setting, and export nothing."""
FIELDS = sorted(ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys())
UNION = re.compile(r"str|int|float|bool|none|list\[.*|constrained-.*|literal\[.*|[A-Z]\w*", re.DOTALL)
"""What pydantic adds to a place to say which branch of a union it tried."""


def make_app(service: Service, access: Access) -> FastAPI:
    """All routes. Documentation pages, which load scripts from elsewhere, are off; /openapi.json is behind the guard."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.thread.start()
        yield
        service.thread.close()

    parts = (completion_routes, prediction_routes, retrieval_routes, transcription_routes, listing_routes)
    return with_guard((*(x(service) for x in parts), page_routes()), lifespan, access, service)


class Guarded(Protocol):
    """What the guard needs of the server that it stands before."""

    limits: Limits
    metrics: ServerMetrics
    is_draining: bool


def with_guard(routers: Iterable[APIRouter], lifespan: Any, access: Access, server: Guarded) -> FastAPI:
    """Routes behind the guard, with errors in OpenAI's form."""
    app = FastAPI(
        title="weitiao", version=VERSION, docs_url=None, redoc_url=None, lifespan=lifespan, redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )  # fmt: skip
    for router in routers:
        app.include_router(router)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_middleware(
        Guard,  # pyright: ignore[reportArgumentType]
        access=access,
        limits=server.limits,
        metrics=server.metrics,
        is_draining=lambda: server.is_draining,
    )
    return app


async def _on_api_error(request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _on_invalid(request: Request, error: Any) -> Response:
    """What pydantic found, in one sentence, without the value that was sent."""
    problem = max(error.errors(), key=lambda x: len(x["loc"]))  # of a union, the branch that went deepest
    place = ".".join(str(x) for x in problem["loc"] if isinstance(x, int) or (x != "body" and not UNION.fullmatch(x)))[:200]
    message = _explained(problem, place or "body")
    return await _on_api_error(request, ApiError(400, message, "invalid_value", place or None))


def _explained(problem: Any, place: str) -> Message:
    kind, name = problem["type"], str(problem["loc"][-1])
    if kind == "extra_forbidden":
        near = get_close_matches(name, FIELDS, 1)
        if near and near[0] != name:
            return Message("{place}: there is no such field; did you mean {near}?", place=place, near=near[0])
        return Message("{place}: there is no such field here: leave it out", place=place)
    if kind == "literal_error" and place.startswith("messages.") and name == "type":
        return Message("{place}: this model reads text only; leave images, audio and files out", place=place)
    if name == "lora_path":
        text = Message("a path is never taken from a request: leave lora_path out, and name an adapter of --adapters-dir")
        return text
    return Message("{place}: {problem}", place=place, problem=problem["msg"][:200])


async def _on_http_error(request: Request, error: Any) -> Response:
    texts = {
        404: Message("there is nothing at this address; GET /openapi.json lists the routes"),
        405: Message("this method is not allowed here"),
    }
    if error.status_code not in texts:
        return await _on_api_error(
            request,
            failed() if error.status_code >= 500 else ApiError(error.status_code, Message("the request is refused")),
        )
    return await _on_api_error(request, ApiError(error.status_code, texts[error.status_code], headers=error.headers))
