"""The one gate in front of every route: who may ask, from which page, and how much. What is not allowed is refused.

    Host            a name of this server; any other may be a page that rebound its own name to this address
    Origin          no other site's page may ask (CORS stays closed)
    key             every route but /health, where the server has one; also of paths that do not exist
    Content-Type    JSON, which no HTML form can send; audio where audio is expected
    quota           what each key may use (quota.py)
    body            as large as the limits say, each piece in time; JSON not too deep, without NaN

It is plain ASGI and outermost, so a route that is added later is behind it without knowing.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from weitiao.core.messages import Message
from weitiao.deploy.serve.access import Access
from weitiao.deploy.serve.api_errors import ApiError, failed
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.model_thread import log_failure
from weitiao.deploy.serve.quota import Quota
from weitiao.deploy.serve.server_metrics import ServerMetrics

log = logging.getLogger("weitiao.serve")
Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

OPEN_PATHS = (b"/health",)
READS = ("GET", "HEAD")
UPLOAD_PATHS = ("/v1/audio/transcriptions", "/v1/transcribe")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS = re.compile(rb"[\[\]{}]")
SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass
class Guard:
    """ASGI middleware that refuses what is not allowed, and logs every request without its contents."""

    app: Callable[[Scope, Receive, Send], Awaitable[None]]
    access: Access
    limits: Limits
    metrics: ServerMetrics
    is_draining: Callable[[], bool] = lambda: False
    quota: Quota = field(init=False)

    def __post_init__(self) -> None:
        self.quota = Quota(self.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # there are no websockets here
            await send({"type": "websocket.close", "code": 1008})
            return
        response = _Response(send)
        started = time.perf_counter()
        scope.setdefault("state", {})["facts"] = {}
        try:
            headers = _headers(scope["headers"])
            key_name = self._check(scope, headers)
            if key_name:
                scope["state"]["facts"]["key"] = key_name
            with nullcontext() if scope["method"] in READS else self.quota.share(key_name) as share:
                scope["state"]["share"] = share
                body = await self._body(scope, headers, receive)
                await self.app(scope, _replayed(body, receive), response.send)
        except ApiError as error:
            await self._refuse(response, error, scope, receive)
        except ClientDisconnect:
            scope["state"]["facts"]["ended"] = "client left"  # nobody is there to tell
        except Exception as error:
            log_failure("a request failed", error)
            await self._refuse(response, failed(), scope, receive)
        finally:
            self._report(scope, response.status, time.perf_counter() - started)

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check(self, scope: Scope, headers: dict[str, list[str]]) -> str:
        """The name of the key that was shown; "" where none is needed."""
        target = len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")
        if target + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.limits.max_header_bytes:
            message = Message("the headers have more than {n:,} bytes", n=self.limits.max_header_bytes)
            raise ApiError(431, message, "headers_too_large", headers={"Connection": "close"})
        self._check_host(scope, headers.get("host", []))
        self._check_origin(headers)
        key_name: str | None = ""
        if self.access.keys and scope.get("raw_path", b"") not in OPEN_PATHS:
            given = headers.get("authorization", [])
            key_name = self.access.key_name(given[0]) if len(given) == 1 else None
            if key_name is None:
                raise _no_key(headers)
        if self.is_draining() and scope.get("raw_path", b"") not in OPEN_PATHS:
            raise ApiError(503, Message("the server is shutting down"), "shutting_down", headers={"Retry-After": "5"})
        if scope["method"] not in READS:
            self._check_content_type(scope, headers)
        return key_name

    def _check_host(self, scope: Scope, given: list[str]) -> None:
        match = HOST.fullmatch(given[0].strip().lower()) if len(given) == 1 else None
        own = str((scope.get("server") or ("",))[0])
        own = f"[{own}]" if ":" in own else own  # the address that the connection came to: no name can be rebound to it
        if match is None or match[1] not in (*self.access.hosts, own):
            raise ApiError(
                403, Message("this Host is not allowed; start the server with --allowed-host NAME"), "wrong_host"
            )

    def _check_origin(self, headers: dict[str, list[str]]) -> None:
        origins, host = headers.get("origin", []), headers["host"][0].strip().lower()
        for origin in origins:
            same = origin.lower() in (f"http://{host}", f"https://{host}")
            if len(origins) > 1 or not (same or origin in self.access.origins):
                raise _other_site()
        site = headers.get("sec-fetch-site", ["none"])
        if not origins and site[0] not in ("none", "same-origin") and headers.get("sec-fetch-mode") != ["navigate"]:
            raise _other_site()

    def _check_content_type(self, scope: Scope, headers: dict[str, list[str]]) -> None:
        types = headers.get("content-type", [])
        kind = types[0].partition(";")[0].strip().lower() if len(types) == 1 else ""
        upload = scope["path"] in UPLOAD_PATHS and (
            kind == "multipart/form-data" or kind.startswith("audio/") or kind == "application/octet-stream"
        )
        if kind != "application/json" and not upload:
            raise ApiError(415, Message("Content-Type must be application/json"), "wrong_content_type")

    # -- the body -----------------------------------------------------------------------------------------------------

    async def _body(self, scope: Scope, headers: dict[str, list[str]], receive: Receive) -> bytes:
        upload = scope["path"] in UPLOAD_PATHS
        limit = self.limits.max_upload_bytes if upload else self.limits.max_body_bytes
        length = headers.get("content-length", ["0"])[0]
        if not length.isdecimal() or int(length) > limit:
            raise _too_large(limit)
        until, pieces, size = time.monotonic() + 6 * self.limits.read_timeout, [], 0
        while True:
            seconds = min(self.limits.read_timeout, until - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), max(seconds, 0))
            except asyncio.TimeoutError:
                raise ApiError(408, Message("the body of the request came too slowly"), "timeout") from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, Message("the body of the request is incomplete"), "incomplete")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body"):
                break
        body = b"".join(pieces)
        if body and not upload:
            check_json(body, self.limits.max_json_depth)
        return body

    # -- the answer ---------------------------------------------------------------------------------------------------

    async def _refuse(self, response: "_Response", error: ApiError, scope: Scope, receive: Receive) -> None:
        if response.status:
            return  # it has begun: its end is all that can be told
        body = json.dumps(error.body(), ensure_ascii=False).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        if error.status in (408, 413, 503):
            headers["connection"] = "close"
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await response.send({"type": "http.response.start", "status": error.status, "headers": raw})
        if error.status == 413:
            await self._discard(receive)
        await response.send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _discard(self, receive: Receive) -> None:
        """Read on for a moment: a client that is still sending would otherwise see a broken pipe and no status."""
        until, size = time.monotonic() + self.limits.read_timeout / 2, 0
        while size < 8 * self.limits.max_upload_bytes and time.monotonic() < until:
            try:
                message = await asyncio.wait_for(receive(), 1.0)
            except asyncio.TimeoutError:
                return
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                return

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        """A line without anything that the client wrote: the route as we wrote it, our names, numbers."""
        route = getattr(scope.get("route"), "path", "-")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE") else "-"
        self.metrics.requests.labels(route, str(status or 499)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        facts = " ".join(f"{key}={value}" for key, value in scope["state"]["facts"].items())
        log.info("%s %s %s %.3fs %s", method, route, status or 499, seconds, facts)


class _Response:
    """Adds the security headers, and knows whether a response has begun."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            names = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *((n, v) for n, v in SECURITY_HEADERS if n not in names)]
        await self._send(message)


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    headers: dict[str, list[str]] = {}
    for name, value in raw:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then what comes after it: the client's leaving."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Any:
        return waiting.pop() if waiting else await receive()

    return replay


def _other_site() -> ApiError:
    """403; there is no CORS and no way to switch it on."""
    message = Message(
        "pages of other sites may not ask this server: ask from a program, or by way of your site's own server"
    )
    return ApiError(403, message, "wrong_origin")


def _no_key(headers: dict[str, list[str]]) -> ApiError:
    """401; a browser that opens the page asks for the key as a password."""
    page = "text/html" in headers.get("accept", [""])[0]
    scheme = 'Basic realm="weitiao: the key is the password", charset="UTF-8"' if page else "Bearer"
    message = Message("the key is missing or wrong: Authorization: Bearer KEY")
    return ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": scheme})


def _too_large(limit: int) -> ApiError:
    return ApiError(413, Message("the body has more than {limit:,} bytes", limit=limit), "too_large")


def check_json(body: bytes, max_depth: int) -> None:
    """Refuse JSON that is deeply nested, or has values that JSON does not know; its syntax is read later.

    Raises:
        ApiError: 400.

    >>> check_json(b'{"a": [1, "[[[["]}', 2)
    """
    plain = STRINGS.sub(b'""', body)
    depth = 0
    for match in BRACKETS.finditer(plain):
        depth += 1 if match[0] in b"[{" else -1
        if depth > max_depth:
            raise ApiError(400, Message("the JSON is more than {n} levels deep", n=max_depth), "too_deep")
    if b"NaN" in plain or b"Infinity" in plain:
        raise ApiError(400, Message("the JSON has a number that is not finite"), "not_finite")
