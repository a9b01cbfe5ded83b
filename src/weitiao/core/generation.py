"""Text generation with a TrainableModel."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from weitiao.core.decoding import decoding_with
from weitiao.core.engine import Engine, Generation, Request, SamplingParams
from weitiao.core.errors import ModelError
from weitiao.core.trainable_model import TrainableModel, evaluating


class Answer(list[int]):
    """The token ids of an answer, without the stop token."""

    cut_at: int | None = None
    """Tokens after which the answer was cut off; None: the model ended it."""


class AnswerText(str):
    """The text of an answer."""

    cut_at: int | None = None


@torch.no_grad()
def generate(
    model: TrainableModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 128,
    sampling: SamplingParams | None = None,
    batch_size: int = 32,
    adapters: Sequence[str] = (),
    num_beams: int = 1,
    input_features: Tensor | None = None,
    engine: Engine | None = None,
) -> list[Answer]:
    """Answers to encoded prompts, in their order, decoded with these settings and no others.

    A decoder answers by its engine (core/engine.py), so an answer does not depend on the other prompts; an encoder-decoder
    by transformers' beam search (core/decoding.py).

    Args:
        prompts: token ids, one list per prompt. Of an encoder-decoder model: the encoder's input; of a speech model: the
            first tokens of the decoder, equally many in every prompt.
        sampling: of a decoder: how tokens are chosen, with the length in place of `max_new_tokens`; default: greedily.
        batch_size: of an encoder-decoder: prompts per batch; batches hold prompts of similar length.
        adapters: the adapter of each prompt, "" for none; (): the model has no adapters to choose from.
        num_beams: beam search width; encoder-decoder models only.
        input_features: [prompts, mel bins, frames] of a speech model.
        engine: of a decoder: one that has cached what the prompts begin with; default: a new one.
    """
    if model.architecture.kind == "decoder":
        params = sampling or SamplingParams(max_new_tokens=max_new_tokens)
        names = adapters or [""] * len(prompts)
        requests = [Request(prompt, params, name) for prompt, name in zip(prompts, names)]
        return [_answer(x) for x in answer_requests(model, requests, engine)]
    prompts = [model.attachment.prepend_virtual_tokens(x) for x in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[Answer] = [Answer() for _ in prompts]
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = [prompts[i] for i in rows]
            if input_features is not None:
                ids = _from_audio(model, batch, input_features[rows], max_new_tokens, num_beams)
            else:
                ids = _from_source(model, batch, max_new_tokens, num_beams)
            for i, row in zip(rows, ids):
                answers[i] = _until_stop(row, model.processor.stop_ids)
    return answers


def new_engine(model: TrainableModel) -> Engine:
    """A decoder's engine, without cached prefixes. They follow from the weights: after a change, take a new engine.

    Raises:
        ModelError: the model is no decoder.
    """
    if model._make_engine is None:
        raise ModelError("only decoders generate with an engine")
    return model._make_engine(model)


def answer_requests(model: TrainableModel, requests: Sequence[Request], engine: Engine | None = None) -> list[Generation]:
    """Each request's finished answer, in their order.

    Args:
        engine: the model's, where it is kept for its cached prefixes; default: a new one.

    Raises:
        DataError: a prompt leaves no position for an answer.
        ModelError: there is no such adapter.
    """
    names = [x.adapter for x in requests]
    with model.attachment.adapters_by_row(names if any(names) else ()):
        pass  # unknown names are refused before anything runs
    engine = engine or new_engine(model)
    generations: list[Generation] = []
    try:
        with evaluating(model):
            generations += [engine.submit(x) for x in requests]
            while not all(x.is_finished for x in generations):
                engine.step()
    except BaseException:
        for x in generations:
            engine.cancel(x)
        raise
    return generations


def stream_answer(model: TrainableModel, request: Request, engine: Engine | None = None) -> Iterator[Generation]:
    """The answer to a request after each of its tokens; a reader who stops cancels it."""
    engine = engine or new_engine(model)
    with evaluating(model):
        generation = engine.submit(request)
    try:
        while not generation.is_finished:
            with evaluating(model):
                engine.step()
            yield generation
    finally:
        if not generation.is_finished:
            engine.cancel(generation)
            engine.step()  # which frees its slot


def _answer(generation: Generation) -> Answer:
    answer = Answer(generation.token_ids)
    answer.cut_at = len(answer) if generation.finish_reason in ("length", "error") else None
    return answer


def decoded(model: TrainableModel, answer: Answer) -> AnswerText:
    """An answer as text."""
    text = AnswerText(model.processor.decode(answer).strip())
    text.cut_at = answer.cut_at
    return text


def num_positions(model: TrainableModel) -> int | None:
    """How many tokens a decoder has positions for; None: any number (rotary, relative)."""
    return model.architecture.num_positions if model.architecture.kind == "decoder" else None


def _from_source(
    model: TrainableModel, sources: Sequence[Sequence[int]], max_new_tokens: int, num_beams: int
) -> list[list[int]]:
    """The decoder's tokens; sources are padded on the right, as some encoders count positions from the left."""
    ids, mask = _right_padded(sources, max(map(len, sources)), model.device)
    transformers_model: Any = model.model
    with decoding_with(model, model.processor.stop_ids, max_new_tokens=max_new_tokens, num_beams=num_beams):
        out = transformers_model.generate(input_ids=ids, attention_mask=mask)
    return out[:, 1:].tolist()


def _from_audio(
    model: TrainableModel,
    decoder_prompts: Sequence[Sequence[int]],
    input_features: Tensor,
    max_new_tokens: int,
    num_beams: int,
) -> list[list[int]]:
    """The decoder's tokens after its prompt."""
    ids = torch.tensor([list(x) for x in decoder_prompts], device=model.device)
    room = model.model.config.max_target_positions - ids.shape[1]
    weight = next(model.model.parameters())
    # not Whisper's own `generate`, which would choose the decoder's prompt itself
    generate_tokens: Any = GenerationMixin.generate  # pyright: ignore[reportAttributeAccessIssue]
    settings = {"max_new_tokens": min(max_new_tokens, room), "num_beams": num_beams}
    with decoding_with(model, model.processor.stop_ids, **settings):
        out = generate_tokens(
            model.model, input_features=input_features.to(weight.device, weight.dtype), decoder_input_ids=ids
        )
    return out[:, ids.shape[1] :].tolist()


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> Answer:
    end = next((i for i, token in enumerate(ids) if token in stop_ids), None)
    answer = Answer(ids[:end])
    answer.cut_at = len(ids) if end is None else None
    return answer


def _right_padded(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids padded with zeros, and a mask that is 1 at real tokens: both [rows, width]."""
    ids = torch.tensor([list(r) + [0] * (width - len(r)) for r in rows], device=device)
    mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in rows], device=device)
    return ids, mask
