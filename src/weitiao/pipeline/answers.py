"""Answers with all that is known of them, as lines of JSON: to one conversation, or to a file of prompts."""

from collections.abc import Iterator, Sequence
from typing import Any

from weitiao.core.engine import GeneratedToken, Generation, Request, SamplingParams
from weitiao.core.errors import DataError, ModelError
from weitiao.core.generation import generate
from weitiao.core.reporter import Reporter
from weitiao.data.prompts import Prompt, read_prompts
from weitiao.pipeline.inference import Model
from weitiao.pipeline.prompting import Messages, PromptIds, as_turns

CHUNK = 256  # prompts that are answered before the first answer is returned


def answer_file(
    model: Model, file: str, system: str | None, sampling: SamplingParams, n: int, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Each line of a file of prompts with its answer, in order; prompts for different adapters share batches.

    Args:
        n: answers to each prompt; with more than one, a line has "answers".

    Raises:
        DataError: a line is not a prompt.
    """
    prompts = read_prompts(file, tuple(model.adapters))
    ids = [_prompt_of(model, x, system, sampling.max_new_tokens) for x in prompts]
    for start in reporter.track(range(0, len(prompts), CHUNK), "prompts"):
        chunk = prompts[start : start + CHUNK]
        if model.assets.architecture.kind != "decoder":
            answers = generate(model.model, ids[start : start + CHUNK], sampling.max_new_tokens)
            for x, prompt, answer in zip(chunk, ids[start : start + CHUNK], answers):
                yield {**x.fields, **_dropped(prompt), "answer": model.decode(answer)}
            continue
        requests = [
            Request(prompt, sampling, x.adapter, i)
            for x, prompt in zip(chunk, ids[start : start + CHUNK])
            for i in range(n)
        ]
        generations = model.answer(requests)
        for i, x in enumerate(chunk):
            yield {**x.fields, **_dropped(ids[start + i]), **answer_fields(model, generations[i * n : (i + 1) * n])}


def answer_messages(
    model: Model, messages: Messages, system: str | None, sampling: SamplingParams, n: int
) -> dict[str, Any]:
    """The answers to one conversation, as `answer_fields`.

    Raises:
        ModelError: an encoder-decoder model has no such answers.
    """
    if model.assets.architecture.kind != "decoder":
        raise ModelError("--n and --logprobs are of decoders: an encoder-decoder model answers by beam search.")
    prompt, adapter = as_turns(messages), next(iter(model.adapters), "")
    ids = model.prompt(prompt, adapter, system, max_new_tokens=sampling.max_new_tokens)
    return answer_fields(model, model.answer([Request(ids, sampling, adapter, i) for i in range(n)]))


def answer_fields(model: Model, generations: Sequence[Generation]) -> dict[str, Any]:
    """One prompt's answers as a line of JSON has them, with the log-probabilities that were asked for."""
    texts = [x.text.strip() for x in generations]
    fields: dict[str, Any] = {"answer": texts[0]} if len(texts) == 1 else {"answers": texts}
    if generations[0].request.sampling.top_logprobs is None:
        return fields
    logprobs = [[_token_fields(model, token) for token in x.tokens] for x in generations]
    return {**fields, "logprobs": logprobs[0] if len(logprobs) == 1 else logprobs}


def _token_fields(model: Model, token: GeneratedToken) -> dict[str, Any]:
    decode, top = model.assets.processor.decode, token.top_logprobs
    fields = {"id": token.id, "token": decode([token.id], skip_special_tokens=False), "logprob": token.logprob}
    return {**fields, "top": {decode([i], skip_special_tokens=False): x for i, x in top}} if top else fields


def _dropped(prompt: PromptIds) -> dict[str, Any]:
    return {"dropped_messages": list(prompt.dropped)} if prompt.dropped else {}


def _prompt_of(model: Model, prompt: Prompt, system: str | None, max_new_tokens: int) -> PromptIds:
    try:
        return model.prompt(prompt.turns, prompt.adapter, system, prompt.fields.get("tools"), max_new_tokens)
    except DataError as error:
        raise DataError("{where}: {reason}", where=prompt.where, reason=error.message) from None
