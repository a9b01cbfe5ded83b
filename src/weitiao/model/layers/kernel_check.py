"""Compares the compiled kernels with torch on random numbers, forward and backward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from weitiao.core.batch import pack
from weitiao.core.lm_head import LMHead
from weitiao.core.shared_prefix import share_prefixes
from weitiao.model.kernels.library import kernels_disabled, kernels_for_logits
from weitiao.model.layers.attention import attend
from weitiao.model.layers.fused import GeGLU, RMSNorm, Rotary, SwiGLU

Size = tuple[int, ...]
Run = Callable[..., Any]


def max_relative_error() -> float:
    """The largest difference of all kernels, relative to the largest value of torch's result."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return max(_error_of(run, *(torch.randn(size).bfloat16() for size in sizes)) for run, *sizes in _cases())


def _cases() -> list[tuple]:
    """(a function, the sizes of its inputs)."""
    prefix = list(range(20))
    batch = pack([{"input_ids": [*prefix, *range(n, 2 * n)], "labels": [0] * (n + 20)} for n in (80, 13)])
    shared, query_tokens = share_prefixes(batch), torch.arange(5, len(batch.labels), 3)
    num_tokens, num_shared = batch.tokens, len(shared.input_ids)

    def norm(x: Tensor, w: Tensor) -> Any:
        return RMSNorm.apply(x, w, 1e-5)

    def rotate(x: Tensor, angle: Tensor) -> Any:
        return Rotary.apply(x, angle.detach().cos(), angle.detach().sin())

    def score(h: Tensor, w: Tensor) -> Tensor:
        head = LMHead(lambda: w, lambda: None, kernels=kernels_for_logits)
        return head.logprobs(h, torch.arange(3, 3 + len(h)) % len(w))

    qkv: list[Size] = [(num_tokens, 4, 64), (num_tokens, 2, 64), (num_tokens, 2, 64)]
    return [
        (lambda q, k, v: attend(q, k, v, batch), *qkv),
        (lambda q, k, v: attend(q, k, v, batch, causal=False, window=30), *qkv),
        (lambda q, k, v: attend(q, k, v, shared), *((num_shared, *size[1:]) for size in qkv)),
        (lambda q, k, v: attend(q, k, v, batch, query_tokens=query_tokens), (len(query_tokens), 4, 64), *qkv[1:]),
        (SwiGLU.apply, (num_tokens, 64), (num_tokens, 64)),
        (GeGLU.apply, (num_tokens, 64), (num_tokens, 64)),
        (norm, (num_tokens, 64), (64,)),
        (rotate, (num_tokens, 4, 64), (num_tokens, 1, 32)),
        (score, (20, 16), (43, 16)),
    ]


def _error_of(run: Run, *inputs: Tensor) -> float:
    with kernels_disabled():
        expected = _results(run, *inputs)
    return max(_relative_error(result, reference) for result, reference in zip(_results(run, *inputs), expected))


def _relative_error(result: Tensor, reference: Tensor) -> float:
    error = float((result.float() - reference.float()).abs().max() / reference.float().abs().max())
    return error if error == error else float("inf")  # NaN must not pass as a small error


def _results(run: Run, *inputs: Tensor) -> list[Tensor]:
    """The output, and the gradient of each input."""
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = run(*leaves)
        out.backward(torch.ones_like(out) + out.detach())
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]
