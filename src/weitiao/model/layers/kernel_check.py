"""What the compiled kernels give, held to torch on a probe of random numbers, forward and backward."""

from collections.abc import Callable

import torch
from torch import Tensor

from weitiao.core.batch import pack
from weitiao.core.lm_head import LMHead
from weitiao.core.shared_prefix import share_prefixes
from weitiao.model.kernels.library import for_words, left_out
from weitiao.model.layers.attention import attend
from weitiao.model.layers.fused import GeGLU, RMSNorm, Rotary, SwiGLU


def largest_gap() -> float:
    """The largest difference over the largest value, of all kernels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return max(_gap(run, *(torch.randn(size).bfloat16() for size in sizes)) for run, *sizes in _probes())


def _probes() -> list[tuple]:
    """(what runs, the sizes of what it is given)."""
    begun = list(range(20))
    rows = pack([{"input_ids": [*begun, *range(n, 2 * n)], "labels": [0] * (n + 20)} for n in (80, 13)])
    once, asking = share_prefixes(rows), torch.arange(5, len(rows.labels), 3)
    many, fewer = rows.tokens, len(once.input_ids)

    def norm(x: Tensor, w: Tensor) -> Tensor:
        return RMSNorm.apply(x, w, 1e-5)  # pyright: ignore[reportReturnType]

    def turn(x: Tensor, angle: Tensor) -> Tensor:
        return Rotary.apply(x, angle.detach().cos(), angle.detach().sin())  # pyright: ignore[reportReturnType]

    def score(h: Tensor, w: Tensor) -> Tensor:
        head = LMHead(lambda: w, lambda: None, kernels=for_words)
        return head.logprobs(h, torch.arange(3, 3 + len(h)) % len(w))

    heads = [(many, 4, 64), (many, 2, 64), (many, 2, 64)]
    return [
        (lambda q, k, v: attend(q, k, v, rows), *heads),
        (lambda q, k, v: attend(q, k, v, rows, causal=False, window=30), *heads),
        (lambda q, k, v: attend(q, k, v, once), *((fewer, *x[1:]) for x in heads)),
        (lambda q, k, v: attend(q, k, v, rows, rows=asking), (len(asking), 4, 64), *heads[1:]),
        (SwiGLU.apply, (many, 64), (many, 64)),
        (GeGLU.apply, (many, 64), (many, 64)),
        (norm, (many, 64), (64,)),
        (turn, (many, 4, 64), (many, 1, 32)),
        (score, (20, 16), (43, 16)),
    ]


def _gap(run: Callable[..., Tensor], *given: Tensor) -> float:
    with left_out():
        wanted = _made(run, *given)
    return max(_off(mine, theirs) for mine, theirs in zip(_made(run, *given), wanted))


def _off(mine: Tensor, theirs: Tensor) -> float:
    gap = float((mine.float() - theirs.float()).abs().max() / theirs.float().abs().max())
    return gap if gap == gap else float("inf")  # not a number is no small difference


def _made(run: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """What comes of it, and each gradient."""
    with torch.enable_grad():
        inputs = [x.clone().requires_grad_() for x in given]
        out = run(*inputs)
        out.backward(torch.ones_like(out) + out.detach())
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]
