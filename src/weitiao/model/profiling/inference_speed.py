"""How fast models read a prompt and write an answer: they take turns in one process, and the median of the turns counts."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

PROMPT_TOKENS, NEW_TOKENS, TURNS = 128, 24, 5


@dataclass(frozen=True)
class InferenceSpeed:
    """Of one row at a time, in tokens per second; medians."""

    prefill: float
    """Tokens of a prompt."""
    decode: float | None
    """Tokens of an answer, after its first; None: the model does not generate."""
    turns: int = TURNS


@torch.no_grad()
def measure_speed(
    models: Sequence[nn.Module],
    generates: bool,
    prompt_tokens: int = PROMPT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    turns: int = TURNS,
) -> list[InferenceSpeed]:
    """The speed of each model, on random tokens; a first turn warms up and does not count.

    Args:
        generates: they are decoders, with a cache of keys and values.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in models]
    for turn in range(turns + 1):
        for model, own in zip(models, times):
            result = _turn(model, generates, prompt_tokens, new_tokens)
            own += [result] if turn else []
    speeds = []
    for own in times:
        prefill, decode = (statistics.median(x) for x in zip(*own))
        speeds.append(InferenceSpeed(prompt_tokens / prefill, new_tokens / decode if generates else None, turns))
    return speeds


def _turn(model: Any, generates: bool, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """(seconds to read a prompt, seconds for the tokens after it)."""
    size = model.config.get_text_config().vocab_size
    ids = torch.randint(0, size, (1, prompt_tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
    if not generates:
        start = _now(ids)
        model(input_ids=ids)
        return _now(ids) - start, 0.0
    start = _now(ids)
    out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
    read = _now(ids)
    for _ in range(new_tokens):
        token = out.logits[:, -1:].argmax(-1)
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    return read - start, _now(ids) - read


def _now(tensor: torch.Tensor) -> float:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
