"""The sides of the comparison: each answers a list of prompts, with a fixed number of new tokens, greedily."""

import importlib
import json
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

UNKNOWN = -1  # a token
Prompts = Sequence[Sequence[int]]
Side = Callable[[Prompts, int], list[list[int]]]
"""(prompts, new tokens of each) -> the new tokens."""


def engine_side(model: Any) -> Side:
    """weitiao's engine: all requests at once, nothing cached from before."""
    from weitiao.core.engine import Request, SamplingParams
    from weitiao.core.generation import answer_requests

    def answer(prompts: Prompts, count: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=count, ignore_eos=True)
        return [x.token_ids for x in answer_requests(model, [Request(x, params) for x in prompts])]

    return answer


def padded_batch_side(model: Any, pad: int) -> Side:
    """transformers.generate, one padded batch."""

    @torch.no_grad()
    def answer(prompts: Prompts, count: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(x)) + list(x) for x in prompts])
        mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in prompts])
        lengths = {"max_new_tokens": count, "min_new_tokens": count, "pad_token_id": pad}
        out = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, repetition_penalty=1.0, **lengths)
        return out[:, width:].tolist()

    return answer


def one_by_one_side(model: Any, pad: int) -> Side:
    """transformers.generate, one request after another."""
    batch = padded_batch_side(model, pad)
    return lambda prompts, count: [batch([x], count)[0] for x in prompts]


def llama_cpp_side(file: Path, threads: int, slots: int, longest: int) -> Side:
    """llama.cpp's server in this process, through xllamacpp: all requests at once.

    It opens a port as soon as it has loaded a model, so it gets a random key.
    """
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params: Any = xllamacpp.CommonParams()
    params.model.path, params.api_keys = str(file), [secrets.token_hex(16)]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads  # more than cores spin against each other
    params.n_parallel, params.n_ctx, params.n_gpu_layers, params.warmup = slots, slots * longest, 0, True
    server: Any = xllamacpp.Server(params)

    def answer_one(prompt: Sequence[int], count: int) -> list[int]:
        settings = {"prompt": list(prompt), "max_tokens": count, "temperature": 0.0, "ignore_eos": True}
        reply = server.handle_completions({**settings, "cache_prompt": False, "stream": False})
        reply = reply if isinstance(reply, dict) else json.loads(reply)
        return [UNKNOWN] * reply["usage"]["completion_tokens"]  # it gives their text, and how many they are

    def answer(prompts: Prompts, count: int) -> list[list[int]]:
        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(lambda x: answer_one(x, count), prompts))

    return answer
