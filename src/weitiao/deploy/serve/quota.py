"""What one key may use, so that it cannot starve the others: requests a minute, and answers at the same time.

    requests_per_minute     a bucket that holds a minute's requests and fills evenly; empty: 429 with Retry-After
    max_parallel_requests   answers that run or wait; n answers, or a list of prompts, count as many (LiteLLM's name)

Where the server has no keys, or only one, the limits hold for everybody together. GET and HEAD are not counted.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from weitiao.core.messages import Message
from weitiao.deploy.serve.api_errors import ApiError, invalid
from weitiao.deploy.serve.limits import Limits

CODE = "rate_limit_exceeded"  # OpenAI's


@dataclass
class _Use:
    """What a key uses now."""

    requests: float
    """What is left in its bucket."""
    filled_at: float
    answers: int = 0


@dataclass
class Share:
    """One request's part of what its key may use."""

    use: _Use
    most: int
    answers: int = 0

    def take(self, n: int) -> None:
        """Count the request as n answers.

        Raises:
            ApiError: 429, the key has as many as it may; 400, it may never have so many.
        """
        if self.most and n > self.most:
            raise invalid(
                "this asks for {n} answers; a key may have {most} at once (max_parallel_requests)", "n", n=n, most=self.most
            )
        before = self.use.answers - self.answers
        if self.most and before + n > self.most:
            message = Message(
                "this key has {open} answers open and asks for {n}; it may have {most} at once (max_parallel_requests): "
                "wait for one to end",
                open=before,
                n=n,
                most=self.most,
            )
            raise ApiError(429, message, CODE, headers={"Retry-After": "1"})
        self.use.answers, self.answers = before + n, n

    def give_back(self) -> None:
        """The request has ended."""
        self.use.answers, self.answers = self.use.answers - self.answers, 0


@dataclass
class Quota:
    """What the keys use."""

    limits: Limits
    _uses: dict[str, _Use] = field(default_factory=dict)
    """By the key's name: as many as there are keys."""

    @contextmanager
    def share(self, key_name: str) -> Iterator[Share]:
        """Inside, a request of this key runs.

        Raises:
            ApiError: 429, the key has used up what it may.
        """
        use = self._uses.setdefault(key_name, _Use(self.limits.requests_per_minute, time.monotonic()))
        share = Share(use, self.limits.max_parallel_requests)
        share.take(1)
        try:
            self._count(use)
            yield share
        finally:
            share.give_back()

    def _count(self, use: _Use) -> None:
        most, now = self.limits.requests_per_minute, time.monotonic()
        if not most:
            return
        use.requests, use.filled_at = min(most, use.requests + (now - use.filled_at) * most / 60), now
        if use.requests < 1:
            seconds = max(1, math.ceil((1 - use.requests) * 60 / most))
            message = Message(
                "this key has used its {most:,} requests a minute (requests_per_minute): try again in {seconds} s",
                most=most,
                seconds=seconds,
            )
            raise ApiError(429, message, CODE, headers={"Retry-After": str(seconds)})
        use.requests -= 1
