"""A request's fields -> the engine's SamplingParams. What a request leaves out is weitiao's own default, written here; a
model's generation_config.json changes nothing.
"""

import json
from typing import Any

from weitiao.core.engine import Grammar, SamplingParams
from weitiao.deploy.serve.api_errors import invalid
from weitiao.deploy.serve.completion_schema import ChatRequest, CompletionRequest, GenerationBody, NamedTool
from weitiao.deploy.serve.limits import Limits
from weitiao.deploy.serve.tool_calls import call_schema

DEFAULTS = SamplingParams()


def sampling_params(
    body: GenerationBody, limits: Limits, max_length: int, vocab_size: int, grammar: Grammar | None = None
) -> SamplingParams:
    """How an answer is chosen.

    Raises:
        ApiError: 400, a value is beyond a limit.
    """
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return SamplingParams(
        max_new_tokens=_max_new_tokens(body, limits, max_length),
        temperature=DEFAULTS.temperature if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=DEFAULTS.top_p if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(body, vocab_size),
        stop=tuple(dict.fromkeys(stop)),
        ignore_eos=body.ignore_eos,
        seed=body.seed,
        top_logprobs=_top_logprobs(body),
        grammar=grammar,
    )


def _max_new_tokens(body: GenerationBody, limits: Limits, max_length: int) -> int:
    newer = body.max_completion_tokens if isinstance(body, ChatRequest) else None
    wanted = newer if newer is not None else body.max_tokens
    most = min(limits.max_new_tokens or max_length, max_length)
    if wanted is not None and wanted > most:
        raise invalid(
            "max_tokens is {wanted:,}; this server gives {most:,} at most", "max_tokens", wanted=wanted, most=most
        )
    return min(limits.default_new_tokens, most) if wanted is None else wanted


def _logit_bias(body: GenerationBody, vocab_size: int) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocab_size):
            raise invalid("logit_bias: the keys are token ids below {n:,}", "logit_bias", n=vocab_size)
        bias[int(key)] = value
    return bias


def _top_logprobs(body: GenerationBody) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    assert isinstance(body, ChatRequest)
    if not body.logprobs:
        if body.top_logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
        return None
    return body.top_logprobs or 0


def grammar_of(body: ChatRequest) -> Grammar | None:
    """What the answer must look like: response_format, or the call that tool_choice demands.

    Raises:
        ApiError: 400, both are asked for, or a tool that is not there.
    """
    format, choice = body.response_format, body.tool_choice
    forced = choice == "required" or isinstance(choice, NamedTool)
    if forced:
        tools = tools_of(body)
        name = choice.function.name if isinstance(choice, NamedTool) else ""
        if not tools or (name and name not in [x["function"]["name"] for x in tools]):
            raise invalid("tool_choice asks for a tool that is not in tools", "tool_choice")
        if format is not None and format.type != "text":
            raise invalid("tool_choice and response_format exclude each other", "response_format")
        return Grammar("json_schema", json.dumps(call_schema(tools, name), ensure_ascii=False))
    if format is None or format.type == "text":
        return None
    if format.type == "json_object":
        return Grammar("json")
    if format.json_schema is None:
        raise invalid("response_format: json_schema needs the key json_schema", "response_format")
    return Grammar("json_schema", json.dumps(format.json_schema.schema_, ensure_ascii=False))


def tools_of(body: ChatRequest) -> list[dict[str, Any]]:
    """The tools that the model is told of."""
    if body.tool_choice == "none" or not body.tools:
        return []
    return [x.model_dump(exclude_none=True) for x in body.tools]
