"""The model's own thread: it alone runs the model, one engine step after another; the server's event loop never waits.

event loop                              model thread
submit(requests)  ---- commands ---->   engine.submit
Answer.pieces     <---- pieces  -----   engine.step, engine.step ...      one piece a step and row
Answer.cancel()   ---- commands ---->   engine.cancel                     before the next step
run(function)     ---- commands ---->   function()                        between two steps
predict(rows)     ---- commands ---->   one call for all that wait        between two steps
"""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weitiao.core.engine import Engine, EngineLoad, FinishReason, GeneratedToken, Generation, Request
from weitiao.core.errors import WeitiaoError
from weitiao.core.messages import Message
from weitiao.deploy.serve.api_errors import ApiError, busy, failed

log = logging.getLogger("weitiao.serve")
MAX_FAILURES = 3  # failed steps in a row, after which the server says that it is not healthy
PREDICTED_AT_ONCE = 256  # rows


@dataclass(frozen=True)
class Piece:
    """What one step added to one of the answers."""

    index: int
    text: str
    tokens: tuple[GeneratedToken, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0


@dataclass
class _Progress:
    """How much of a generation was handed over."""

    answer: "Answer"
    index: int
    tokens: int = 0
    characters: int = 0


@dataclass(eq=False)
class Answer:
    """The answers to one request, n of them, as they come."""

    requests: Sequence[Request]
    thread: "ModelThread"
    queue: "asyncio.Queue[Piece | BaseException]" = field(default_factory=asyncio.Queue)
    is_closed: bool = False

    async def pieces(self, seconds: float) -> AsyncIterator[Piece]:
        """Pieces until all answers have ended; leaving earlier cancels them.

        Raises:
            ApiError: the request was refused, it failed, its grammar reached a limit, or its time is up.
        """
        timeout = ApiError(503, Message("the answer took longer than {seconds:g} seconds", seconds=seconds), "timeout")
        # a timer of its own: asyncio.wait_for may swallow a cancellation that comes together with a piece (Python < 3.12)
        timer = asyncio.get_running_loop().call_later(seconds, self.queue.put_nowait, timeout)
        remaining = len(self.requests)
        try:
            while remaining:
                piece = await self.queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                remaining -= piece.finish_reason is not None
                yield piece
        finally:
            timer.cancel()
            self.cancel()

    def cancel(self) -> None:
        """End what has not ended; its slots are free after the next step."""
        if not self.is_closed:
            self.is_closed = True
            self.thread.cancel(self)


@dataclass(eq=False)
class _Prediction:
    rows: Sequence[Mapping[str, Any]]
    task: str
    future: "asyncio.Future[list[dict[str, Any]]]"


class ModelThread:
    """Runs an engine, and whatever else needs the model."""

    def __init__(
        self,
        engine: Engine | None,
        max_queue: int,
        predict: Callable[[Sequence[Mapping[str, Any]], str], list[dict[str, Any]]] | None = None,
    ) -> None:
        """Args:
        max_queue: answers that may wait beyond the engine's slots.
        predict: (rows, task) -> predictions.
        """
        self.engine, self.max_queue, self._predict = engine, max_queue, predict
        self._commands: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._live: dict[int, tuple[Generation, _Progress]] = {}
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failures = 0
        self.num_open = 0
        """Answers that were accepted and have not ended; kept by the event loop."""
        self.steps = 0

    # -- the event loop's side ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; called in the event loop that will read the answers."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, seconds: float = 10.0) -> None:
        """End the thread after its present step."""
        self._commands.put(("close", None))
        self._thread.join(seconds)

    @property
    def is_healthy(self) -> bool:
        return self._thread.is_alive() and self._failures < MAX_FAILURES

    @property
    def load(self) -> EngineLoad:
        return self.engine.load if self.engine else EngineLoad(0, 0, 1)

    def submit(self, requests: Sequence[Request]) -> Answer:
        """Ask for answers.

        Raises:
            ApiError: 429, too many wait already.
        """
        self._admit(len(requests))
        answer = Answer(requests, self)
        self._commands.put(("submit", answer))
        return answer

    def cancel(self, answer: Answer) -> None:
        self.num_open -= len(answer.requests)
        self._commands.put(("cancel", answer))

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a function that needs the model, called between two steps."""
        return await self._ask("run", lambda future: (function, arguments, future))

    async def predict(self, rows: Sequence[Mapping[str, Any]], task: str = "") -> list[dict[str, Any]]:
        """Predictions, together with those of other requests that wait."""
        return await self._ask("predict", lambda future: _Prediction(rows, task, future))

    async def _ask(self, kind: str, make: Callable[["asyncio.Future[Any]"], Any]) -> Any:
        self._admit(1)
        assert self._loop is not None
        future: asyncio.Future[Any] = self._loop.create_future()
        self._commands.put((kind, make(future)))
        try:
            return await future
        finally:
            self.num_open -= 1

    def _admit(self, n: int) -> None:
        room = self.load.slots + self.max_queue
        if self.num_open + n > room:
            raise busy("{n} answers are running or waiting, which is as many as can: try again", n=self.num_open)
        self.num_open += n

    # -- the model thread's side --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            predictions: list[_Prediction] = []
            for kind, value in self._next_commands():
                if kind == "close":
                    return
                if kind == "predict":
                    predictions.append(value)
                else:
                    {"submit": self._submit, "cancel": self._cancel, "run": self._call}[kind](value)
            if predictions:
                self._predict_all([x for x in predictions if not x.future.cancelled()])
            if self._live or (self.engine is not None and self.engine.load.running):
                self._step()

    def _next_commands(self) -> list[tuple[str, Any]]:
        """All that wait; if there is nothing to generate, the first that comes."""
        commands: list[tuple[str, Any]] = []
        busy_engine = self._live or (self.engine is not None and self.engine.load.running)
        try:
            if not busy_engine:
                commands.append(self._commands.get())
            while True:
                commands.append(self._commands.get_nowait())
        except queue.Empty:
            return commands

    def _submit(self, answer: Answer) -> None:
        assert self.engine is not None
        generations: list[Generation] = []
        try:
            generations += (self.engine.submit(x) for x in answer.requests)
        except BaseException as error:
            for x in generations:
                self.engine.cancel(x)
            self._post([(answer, _as_api_error(error))])
            return
        for i, x in enumerate(generations):
            self._live[id(x)] = x, _Progress(answer, i)

    def _cancel(self, answer: Answer) -> None:
        assert self.engine is not None
        for key, (generation, progress) in list(self._live.items()):
            if progress.answer is answer:
                self.engine.cancel(generation)
                del self._live[key]

    def _step(self) -> None:
        assert self.engine is not None
        try:
            changed = self.engine.step()
            self._failures = 0
        except Exception as error:
            self._fail(error)
            return
        self.steps += 1
        self._post([piece for x in changed if id(x) in self._live for piece in self._pieces(x)])

    def _pieces(self, generation: Generation) -> list[tuple[Answer, Piece | BaseException]]:
        _, progress = self._live[id(generation)]
        tokens, text = tuple(generation.tokens[progress.tokens :]), generation.text[progress.characters :]
        reason = generation.finish_reason
        if not tokens and not text and reason is None:
            return []
        progress.tokens, progress.characters = len(generation.tokens), len(generation.text)
        if reason is not None:
            del self._live[id(generation)]
        if reason == "error":  # never passed on as a whole answer; it ends the request, as in vLLM
            return [(progress.answer, _broken_grammar(generation))]
        return [(progress.answer, Piece(progress.index, text, tokens, reason, generation.cached_tokens))]

    def _fail(self, error: Exception) -> None:
        """All that was running is lost: after a failed step nothing is known about the engine's rows."""
        assert self.engine is not None
        self._failures += 1
        log_failure("a step of the model failed", error)
        answers = {id(x.answer): x.answer for _, x in self._live.values()}
        for generation, _ in self._live.values():
            self.engine.cancel(generation)
        self._live.clear()
        self._post([(x, failed()) for x in answers.values()])

    def _call(self, job: tuple[Callable[..., Any], tuple[Any, ...], "asyncio.Future[Any]"]) -> None:
        function, arguments, future = job
        if future.cancelled():
            return
        try:
            self._resolve(future, function(*arguments), None)
        except BaseException as error:
            self._resolve(future, None, _as_api_error(error))

    def _predict_all(self, waiting: Sequence[_Prediction]) -> None:
        """In one call as many as belong to one task, up to PREDICTED_AT_ONCE rows."""
        assert self._predict is not None
        rest = list(waiting)
        while rest:
            at_once, size = [], 0
            for x in [y for y in rest if y.task == rest[0].task]:
                if not at_once or size + len(x.rows) <= PREDICTED_AT_ONCE:
                    at_once.append(x)
                    size += len(x.rows)
            rest = [x for x in rest if x not in at_once]
            try:
                predicted = iter(self._predict([row for x in at_once for row in x.rows], at_once[0].task))
                for x in at_once:
                    self._resolve(x.future, [next(predicted) for _ in x.rows], None)
            except BaseException as error:
                if len(at_once) == 1:
                    self._resolve(at_once[0].future, None, _as_api_error(error))
                else:  # one request's rows must not fail another's
                    for x in at_once:
                        self._predict_all([x])

    # -- from the thread to the event loop ----------------------------------------------------------------------------

    def _post(self, pieces: Sequence[tuple[Answer, Piece | BaseException]]) -> None:
        if pieces:
            self._in_loop(lambda: [answer.queue.put_nowait(piece) for answer, piece in pieces])

    def _resolve(self, future: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
        def settle() -> None:
            if not future.done():
                future.set_result(result) if error is None else future.set_exception(error)

        self._in_loop(settle)

    def _in_loop(self, function: Callable[[], Any]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended, and nobody reads any more
            self._loop.call_soon_threadsafe(function)


def _broken_grammar(generation: Generation) -> ApiError:
    message = Message(
        "the answer reached a limit of its grammar after {n:,} tokens and is not complete; ask with a simpler schema or "
        "pattern, or without one ({reason})",
        n=len(generation.tokens),
        reason=generation.error,
    )
    return ApiError(400, message, "grammar_limit", "response_format")


def _as_api_error(error: BaseException) -> ApiError:
    """What a client is told: our own sentences as they are, of anything else nothing."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, WeitiaoError):
        return ApiError(400, error.message, "invalid_value")
    log_failure("a request failed", error)
    return failed()


def log_failure(what: str, error: BaseException) -> None:
    """The kind of an exception and where it was raised; its text may hold what a user wrote, so it is left out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
    log.error("%s: %s at %s", what, type(error).__name__, place)
