"""Limits of the server: what one request, and all together, may cost. Beyond them: 413, 429 or 503, never a crash."""

import re

from pydantic import Field

from weitiao.core.registry import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a model or an adapter may be called. A name is looked up in a table and never becomes a part of a path."""


class Limits(Settings):
    """Limits of the server."""

    max_queue: int = Field(default=64, ge=0)
    """Answers that may wait for a slot; more are refused with 429."""
    max_parallel_requests: int = Field(default=0, ge=0)
    """Answers of one key that may run or wait at the same time; more are refused with 429. 0: no limit of its own."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Of one key; more are refused with 429. 0: no limit."""
    max_cpu_loras: int = Field(default=32, ge=1)
    """Of --adapters-dir, adapters in memory at once (vLLM's name); the least recently used one goes first."""
    max_connections: int = Field(default=512, ge=1)
    """Open connections; more are refused with 503."""
    max_header_bytes: int = Field(default=16_384, ge=1024)
    """Request line and headers together."""
    max_body_bytes: int = Field(default=1_048_576, ge=1024)
    """Body of a request in JSON."""
    max_upload_bytes: int = Field(default=26_214_400, ge=1024)
    """Body of a request with audio (OpenAI's limit, 25 MiB)."""
    max_json_depth: int = Field(default=32, ge=4)
    """Lists and objects within each other."""
    max_messages: int = Field(default=512, ge=1)
    """Messages of a conversation."""
    max_inputs: int = Field(default=256, ge=1)
    """Texts or documents of one request."""
    max_n: int = Field(default=4, ge=1)
    """Answers to one prompt."""
    max_new_tokens: int = Field(default=0, ge=0)
    """The most tokens of an answer; 0: as many as the model has room for."""
    default_new_tokens: int = Field(default=1024, ge=1)
    """Tokens of an answer where the request says nothing."""
    request_timeout: float = Field(default=300.0, gt=0)
    """Seconds for one answer, from its first byte to its last."""
    read_timeout: float = Field(default=10.0, gt=0)
    """Seconds in which headers, and each piece of a body, must come."""
    write_timeout: float = Field(default=30.0, gt=0)
    """Seconds that a client may take to accept a piece of a stream."""
    keep_alive: float = Field(default=5.0, gt=0)
    """Seconds that an idle connection is kept open."""
    drain_timeout: float = Field(default=30.0, gt=0)
    """Seconds that running answers have to finish after SIGTERM."""
