"""Errors as OpenAI's clients read them: {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}.

What goes out is one sentence. A traceback, a path or a class name never does.
"""

from typing import Any

from weitiao.core.messages import Message

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    431: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A request that is refused, or that failed."""

    def __init__(
        self,
        status: int,
        message: Message | str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """What the client gets."""
        error = {"message": str(self.message), "type": TYPES.get(self.status, "server_error")}
        return {"error": {**error, "param": self.param, "code": self.code}}


def invalid(template: str, /, param: str | None = None, **fields: Any) -> ApiError:
    """400: the request is not possible."""
    return ApiError(400, Message(template, **fields), "invalid_value", param)


def busy(template: str, /, **fields: Any) -> ApiError:
    """429: come again in a moment."""
    return ApiError(429, Message(template, **fields), "queue_full", headers={"Retry-After": "1"})


def failed() -> ApiError:
    """500: it is our fault, and the log has what it was."""
    return ApiError(500, Message("the server failed on this request; its log says more"), "internal_error")
