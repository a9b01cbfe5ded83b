"""What all routes share: the model with its thread, the names, the limits, the counters."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from weitiao.core.errors import WeitiaoError
from weitiao.core.messages import Message
from weitiao.deploy.serve.adapter_table import AdapterTable
from weitiao.deploy.serve.api_errors import ApiError, busy, invalid
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.model_thread import ModelThread
from weitiao.deploy.serve.served_model import ROUTES, Ability, ServedModel
from weitiao.deploy.serve.server_metrics import ServerMetrics

Result = TypeVar("Result")
CHARACTERS_PER_TOKEN = 16  # no prompt that fits has more on average; English has 4


@dataclass
class Service:
    """A model that is served."""

    served: ServedModel
    limits: Limits
    thread: ModelThread
    table: AdapterTable
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    encoder: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "encode"))
    """Tokenizes: off the event loop, and one request at a time, as tokenizers are not safe in several threads."""
    started: int = field(default_factory=lambda: int(time.time()))
    is_draining: bool = False
    _encoding: int = 0

    @classmethod
    def make(cls, served: ServedModel, limits: Limits) -> "Service":
        thread = ModelThread(served.engine, limits.max_queue, served.predict)
        return cls(served, limits, thread, AdapterTable(served.base, served.adapters, limits.max_cpu_loras))

    def need(self, *abilities: Ability) -> None:
        """
        Raises:
            ApiError: 400, the model cannot do any of these.
        """
        if not self.served.abilities & set(abilities):
            can = ", ".join(f"{x} ({ROUTES[x]})" for x in sorted(self.served.abilities))
            raise invalid("this model cannot do that; it can: {abilities}", "model", abilities=can)

    async def encode(self, function: Callable[..., Result], *arguments: Any, characters: int) -> Result:
        """What tokenizes, off the event loop.

        Args:
            characters: how long the texts are.

        Raises:
            ApiError: 400, with what is wrong; 429, too many wait.
        """
        engine = self.served.engine
        most = engine.max_length * CHARACTERS_PER_TOKEN if engine else self.limits.max_body_bytes
        if characters > most:  # before it is tokenized, which takes seconds for the longest of words
            message = Message(
                "the prompt has {n:,} characters, far more than the {length:,} tokens of this model hold",
                n=characters,
                length=engine.max_length if engine else 0,
            )
            raise ApiError(400, message, "context_length_exceeded", "messages")
        if self._encoding >= self.thread.load.slots + self.limits.max_queue:
            raise busy("{n} prompts wait to be read, which is as many as can: try again", n=self._encoding)
        self._encoding += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.encoder, function, *arguments)
        except WeitiaoError as error:
            raise ApiError(400, error.message, "invalid_value", "messages") from None
        finally:
            self._encoding -= 1

    @asynccontextmanager
    async def lease(self, adapter: str) -> AsyncIterator[None]:
        """Inside, an adapter is in memory.

        Raises:
            ApiError: it cannot be loaded.
        """
        if not self.table.needs_lease(adapter):
            yield
            return
        await self.thread.run(self.table.use, adapter)
        with self.table.releasing(adapter):
            yield

    def check_count(self, n: int, param: str) -> None:
        """
        Raises:
            ApiError: 413, there are too many.
        """
        if n > self.limits.max_inputs:
            message = Message("{n:,} texts in one request; {most:,} are allowed", n=n, most=self.limits.max_inputs)
            raise ApiError(413, message, "too_many_inputs", param)

    def update_gauges(self) -> None:
        """What the engine is doing, for /metrics."""
        load = self.thread.load
        self.metrics.running.set(load.running)
        self.metrics.waiting.set(load.waiting)
        self.metrics.slots.set(load.slots)
        self.metrics.adapters.set(len(self.table.loaded()))
