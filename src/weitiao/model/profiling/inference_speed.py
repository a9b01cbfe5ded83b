"""How fast models read a prompt and write answers: they take turns in one process, and the median of the turns counts."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weitiao.core.engine import Engine, Request, SamplingParams
from weitiao.core.trainable_model import TrainableModel
from weitiao.model.generation.choose import make_engine

PROMPT_TOKENS, NEW_TOKENS, TURNS = 128, 24, 5
SHORT_PROMPT = 16  # tokens, of rows whose answers are timed
BATCH = 8


@dataclass(frozen=True)
class InferenceSpeed:
    """In tokens per second; medians."""

    prefill: float
    """Tokens of a prompt."""
    decode: float | None
    """Tokens of an answer, after its first, one row at a time; None: the model does not generate."""
    decode_batch: float | None
    """The same of BATCH rows at a time, all of them together."""


@torch.no_grad()
def measure_speed(
    models: Sequence[TrainableModel],
    generates: bool,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    turns: int = TURNS,
) -> list[InferenceSpeed]:
    """The speed of each model, on random tokens; a first turn warms up and does not count.

    Args:
        generates: they are decoders: answers are written by the engine that serves them.
    """
    times: list[list[tuple[float, ...]]] = [[] for _ in models]
    engines = [make_engine(x) if generates else None for x in models]
    for turn in range(turns + 1):
        for model, engine, own in zip(models, engines, times):
            if engine is None:
                result = (_reading(model, prompt_tokens, turn),)
            else:
                alone = _answering(engine, _prompts(model, 1, prompt_tokens, turn), new_tokens)
                together = _answering(engine, _prompts(model, BATCH, SHORT_PROMPT, turn), new_tokens)
                result = (*alone, together[1])
            own += [result] if turn else []
    speeds = []
    for own in times:
        prefill, *decode = (statistics.median(x) for x in zip(*own))
        per_step = [n * new_tokens / x for n, x in zip((1, BATCH), decode)] or [None, None]
        speeds.append(InferenceSpeed(prompt_tokens / prefill, *per_step))
    return speeds


def _prompts(model: TrainableModel, n: int, length: int, turn: int) -> list[list[int]]:
    """Other tokens in each turn, so that no engine has them in its cache."""
    size = model.model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(1000 * n + turn)
    return torch.randint(0, size, (n, length), generator=generator).tolist()


def _answering(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int) -> tuple[float, float]:
    """(seconds to the first token of every answer, seconds for `new_tokens` more of each)."""
    params = SamplingParams(max_new_tokens=new_tokens + 1, ignore_eos=True)
    start = time.perf_counter()
    answers = [engine.submit(Request(ids, params)) for ids in prompts]
    while not all(x.tokens for x in answers):
        engine.step()
    first, read = sum(len(x.tokens) for x in answers), time.perf_counter()
    assert first == len(answers), "their prompts are read in one step"
    while not all(x.is_finished for x in answers):
        engine.step()
    return read - start, time.perf_counter() - read


def _reading(model: TrainableModel, tokens: int, turn: int) -> float:
    """Seconds of an encoder."""
    ids = torch.tensor(_prompts(model, 1, tokens, turn)).to(model.device)
    start = _now(ids)
    model.model(input_ids=ids)
    return _now(ids) - start


def _now(tensor: torch.Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
