"""The routes that generate: /v1/chat/completions and /v1/completions, as OpenAI's clients call them."""

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from weitiao.core.engine import GeneratedToken, Request
from weitiao.deploy.serve.api_errors import invalid
from weitiao.deploy.serve.completion_schema import ChatRequest, CompletionRequest, GenerationBody, num_answers
from weitiao.deploy.serve.event_stream import EventStream, event, until_disconnect
from weitiao.deploy.serve.model_thread import Answer, Piece
from weitiao.deploy.serve.sampling import grammar_of, sampling_params, tools_of
from weitiao.deploy.serve.service import Service
from weitiao.deploy.serve.tool_calls import ToolCallReader


def completion_routes(service: Service) -> APIRouter:
    """Chat and text completions."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: HttpRequest) -> Any:
        """Answer a conversation."""
        service.need("generate")
        adapter = service.table.resolve(body.model)
        if len(body.messages) > service.limits.max_messages:
            raise invalid("more than {n:,} messages", "messages", n=service.limits.max_messages)
        messages = [_plain_message(x.model_dump(exclude_none=True)) for x in body.messages]
        engine, encode = service.served.engine, service.served.encode_chat
        assert engine is not None and encode is not None
        grammar, tools = grammar_of(body), tools_of(body)
        sampling = sampling_params(body, service.limits, engine.max_length, service.served.vocab_size, grammar)
        forced = grammar is not None and body.tool_choice not in (None, "none", "auto")
        format = "json" if forced else service.served.tool_format if tools else ""
        form = ChatForm(service, body.model, format, sampling.top_logprobs)

        async def requests() -> list[Request]:
            size = sum(_size(x) for x in (*messages, *tools))
            room = sampling.max_new_tokens
            ids, form.dropped = await service.encode(encode, messages, tools, adapter, room, characters=size)
            return [Request(ids, sampling, adapter, i) for i in range(_n(body, service))]

        return await _respond(service, form, body, adapter, requests, request)

    @router.post("/v1/completions")
    async def completions(body: CompletionRequest, request: HttpRequest) -> Any:
        """Continue a text."""
        service.need("generate")
        adapter = service.table.resolve(body.model)
        engine, encode = service.served.engine, service.served.encode_text
        assert engine is not None and encode is not None
        sampling = sampling_params(body, service.limits, engine.max_length, service.served.vocab_size)
        prompts = _prompts(body)
        service.check_count(len(prompts), "prompt")
        form = TextForm(service, body.model, sampling.top_logprobs)

        async def requests() -> list[Request]:
            ids = [
                _checked_ids(x, service) if isinstance(x, list) else await service.encode(encode, x, characters=len(x))
                for x in prompts
            ]
            return [Request(x, sampling, adapter, i) for x in ids for i in range(_n(body, service))]

        return await _respond(service, form, body, adapter, requests, request)

    return router


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as templates know it: one text, and the role that OpenAI renamed by its former name."""
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(x["text"] for x in content)
    if message["role"] == "developer":
        message["role"] = "system"
    message.pop("annotations", None)
    if message["role"] != "tool":
        message.pop("name", None)
    return message


def _size(value: Any) -> int:
    """Characters in all texts of a value."""
    if isinstance(value, dict):
        return sum(_size(x) + len(key) for key, x in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 1


def _n(body: GenerationBody, service: Service) -> int:
    n = body.n or 1
    if n > service.limits.max_n:
        raise invalid("n is {n}; this server gives {most} answers at most", "n", n=n, most=service.limits.max_n)
    return n


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    prompt: Any = body.prompt
    return [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)


def _checked_ids(ids: list[int], service: Service) -> list[int]:
    if max(ids) >= service.served.vocab_size:
        raise invalid("prompt: token ids are below {n:,}", "prompt", n=service.served.vocab_size)
    return ids


async def _respond(
    service: Service, form: "ChatForm | TextForm", body: GenerationBody, adapter: str, requests: Any, request: HttpRequest
) -> Any:
    facts = request.scope["state"].setdefault("facts", {})
    facts["model"] = adapter or service.table.base
    request.scope["state"]["share"].take(num_answers(body))
    started = time.perf_counter()

    async def pieces() -> AsyncGenerator[Piece, None]:
        async with service.lease(adapter):
            answer = service.thread.submit(await requests())
            try:
                form.begin(answer)
                async for piece in _counted(service, answer, started, facts):
                    yield piece
            finally:
                answer.cancel()

    if not body.stream:
        return JSONResponse(await until_disconnect(request, form.collect(pieces())))
    include_usage = bool(body.stream_options and body.stream_options.include_usage)
    stream = pieces()
    # what is refused is refused with its status, before the stream begins
    first = await until_disconnect(request, anext(stream))
    return EventStream(form.events(_chained(first, stream), include_usage), service.limits.write_timeout)


async def _chained(first: Piece, rest: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    try:
        yield first
        async for piece in rest:
            yield piece
    finally:
        await rest.aclose()


async def _counted(service: Service, answer: Answer, started: float, facts: dict[str, Any]) -> AsyncGenerator[Piece, None]:
    """The pieces, counted for /metrics and for the log."""
    metrics, tokens, first, open_answers = service.metrics, 0, 0.0, len(answer.requests)
    prompt = sum(len(x.prompt_ids) for x in answer.requests)
    metrics.prompt_tokens.inc(prompt)
    try:
        async for piece in answer.pieces(service.limits.request_timeout):
            if not first:
                first = time.perf_counter()
                metrics.first_token.observe(first - started)
                metrics.cached_tokens.inc(piece.cached_tokens)
            tokens += len(piece.tokens)
            open_answers -= piece.finish_reason is not None
            yield piece
    finally:
        answer.cancel()
        metrics.completion_tokens.inc(tokens)
        if open_answers:
            metrics.cancelled.inc(open_answers)
        if tokens > 1:
            metrics.per_token.observe((time.perf_counter() - first) / (tokens - 1))
        facts["prompt_tokens"], facts["completion_tokens"] = prompt, tokens


@dataclass
class _Choice:
    """One of the answers, complete."""

    text: str = ""
    tokens: list[GeneratedToken] = field(default_factory=list)
    finish_reason: str = "stop"


@dataclass
class CompletionForm:
    """How an answer is written; the same facts for chats and for texts."""

    service: Service
    model: str
    top_logprobs: int | None = None
    requests: Sequence[Request] = ()
    cached: int = 0
    tokens: int = 0

    def begin(self, answer: Answer) -> None:
        """What was asked for, when it is known."""
        self.requests = answer.requests

    def count(self, piece: Piece) -> None:
        """Add to what `usage` tells."""
        self.tokens += len(piece.tokens)
        self.cached = max(self.cached, piece.cached_tokens)

    def usage(self) -> dict[str, Any]:
        """Tokens read and generated; n answers to one prompt read it once."""
        prompt = sum(len(x.prompt_ids) for x in self.requests if x.index == 0)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }

    async def gather(self, pieces: AsyncGenerator[Piece, None]) -> list[_Choice]:
        """All answers, complete."""
        choices: dict[int, _Choice] = {}
        async for piece in pieces:
            self.count(piece)
            choice = choices.setdefault(piece.index, _Choice())
            choice.text += piece.text
            choice.tokens += piece.tokens
            choice.finish_reason = _reason(piece) or choice.finish_reason
        return [choices.get(i, _Choice()) for i in range(len(self.requests))]


def _reason(piece: Piece) -> str | None:
    return "length" if piece.finish_reason == "cancelled" else piece.finish_reason


class ChatForm(CompletionForm):
    """OpenAI's chat.completion and chat.completion.chunk."""

    def __init__(self, service: Service, model: str, tool_format: str, top_logprobs: int | None) -> None:
        super().__init__(service, model, top_logprobs)
        self.tool_format = tool_format
        self.dropped: Sequence[int] = ()
        """Messages that are not in the prompt, because the conversation was too long."""
        self.id = f"chatcmpl-{secrets.token_hex(12)}"

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        facts = {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model}
        dropped = {"dropped_messages": list(self.dropped)} if self.dropped else {}
        return {**facts, **dropped, "choices": choices}

    async def collect(self, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(i, x) for i, x in enumerate(await self.gather(pieces))]
        return {**self._envelope("chat.completion", choices), "usage": self.usage()}

    def _choice(self, index: int, choice: _Choice) -> dict[str, Any]:
        reader = ToolCallReader(self.tool_format)
        text = reader.feed(choice.text)
        rest, calls = reader.end()
        message: dict[str, Any] = {"role": "assistant", "content": text + rest or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = calls
        reason = "tool_calls" if calls and choice.finish_reason == "stop" else choice.finish_reason
        return {"index": index, "message": message, "logprobs": self._logprobs(choice.tokens), "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> dict[str, Any] | None:
        if self.top_logprobs is None:
            return None
        return {"content": [self._token(x) for x in tokens], "refusal": None}

    def _token(self, token: GeneratedToken) -> dict[str, Any]:
        top = [self._scored(id, logprob) for id, logprob in token.top_logprobs]
        return {**self._scored(token.id, token.logprob), "top_logprobs": top}

    def _scored(self, id: int, logprob: float | None) -> dict[str, Any]:
        spelled = self.service.served.token_text(id)
        value = -9999.0 if logprob is None or logprob == float("-inf") else logprob
        return {"token": spelled.text, "logprob": value, "bytes": None if spelled.bytes is None else list(spelled.bytes)}

    async def events(self, pieces: AsyncGenerator[Piece, None], include_usage: bool) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        readers = [ToolCallReader(self.tool_format) for _ in self.requests]
        try:
            for i in range(len(readers)):
                yield self._chunk(i, {"role": "assistant", "content": ""})
            async for piece in pieces:
                self.count(piece)
                text = readers[piece.index].feed(piece.text)
                if piece.finish_reason is None:
                    if text or (piece.tokens and self.top_logprobs is not None):
                        yield self._chunk(piece.index, {"content": text}, piece.tokens)
                    continue
                rest, calls = readers[piece.index].end()
                if text + rest or piece.tokens:
                    yield self._chunk(piece.index, {"content": text + rest}, piece.tokens)
                if calls:
                    yield self._chunk(piece.index, {"tool_calls": [{"index": k, **x} for k, x in enumerate(calls)]})
                reason = _reason(piece)
                yield self._chunk(piece.index, {}, reason="tool_calls" if calls and reason == "stop" else reason)
        finally:
            await pieces.aclose()
        if include_usage:
            yield event({**self._envelope("chat.completion.chunk", []), "usage": self.usage()})

    def _chunk(
        self, index: int, delta: dict[str, Any], tokens: Sequence[GeneratedToken] = (), reason: str | None = None
    ) -> bytes:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event(self._envelope("chat.completion.chunk", [choice]))


class TextForm(CompletionForm):
    """OpenAI's text_completion."""

    def __init__(self, service: Service, model: str, top_logprobs: int | None) -> None:
        super().__init__(service, model, top_logprobs)
        self.id = f"cmpl-{secrets.token_hex(12)}"

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        facts = {"id": self.id, "object": "text_completion", "created": int(time.time()), "model": self.model}
        return {**facts, "choices": choices}

    async def collect(self, pieces: AsyncGenerator[Piece, None]) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(i, x.text, x.tokens, 0, x.finish_reason) for i, x in enumerate(await self.gather(pieces))]
        return {**self._envelope(choices), "usage": self.usage()}

    def _choice(
        self, index: int, text: str, tokens: Sequence[GeneratedToken], offset: int, reason: str | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self._logprobs(tokens, offset), "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[GeneratedToken], offset: int) -> dict[str, Any] | None:
        if self.top_logprobs is None:
            return None
        spelled = [self.service.served.token_text(x.id).text for x in tokens]
        offsets = [offset + sum(map(len, spelled[:i])) for i in range(len(spelled))]
        top = [{self.service.served.token_text(id).text: p for id, p in x.top_logprobs} for x in tokens]
        return {
            "tokens": spelled,
            "token_logprobs": [x.logprob for x in tokens],
            "top_logprobs": top,
            "text_offset": offsets,
        }

    async def events(self, pieces: AsyncGenerator[Piece, None], include_usage: bool) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events."""
        offsets = [0] * len(self.requests)
        try:
            async for piece in pieces:
                self.count(piece)
                if piece.text or piece.finish_reason or (piece.tokens and self.top_logprobs is not None):
                    choice = self._choice(piece.index, piece.text, piece.tokens, offsets[piece.index], _reason(piece))
                    yield event(self._envelope([choice]))
                offsets[piece.index] += len(piece.text)
        finally:
            await pieces.aclose()
        if include_usage:
            yield event({**self._envelope([]), "usage": self.usage()})
