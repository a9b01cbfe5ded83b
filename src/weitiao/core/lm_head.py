"""The language-model head, scored in one pass over chunks of tokens, so that [T, V] never exists.

For a token with hidden state h, target y and logits z = s W h:

    log p(y) = z_y - logsumexp(z)          d log p(y) / dh = s (W_y - softmax(z) W) = J   [D]

J is one row of width D a token and does not depend on the loss. So the forward pass keeps J (and drops z), and the
backward pass is a row-wise product with the incoming gradient: the head's GEMMs run once each way, in the model's own
dtype, with fp32 sums. When the head itself is trained, its gradient needs z again: of some words at a time and of all
tokens, so that each word's gradient is one product.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from weitiao.core.errors import ModelError

CHUNK = 256  # tokens scored at once, at most
LOGITS = 2**23  # numbers in [chunk, V], at most: 32 MB in fp32, for glibc fetches larger blocks anew each time; but
FEWEST = 128  # tokens at once, at least (134 MB with 262k words): the whole weight is read for each chunk
ENOUGH = 32  # rows from which matrix products add up in blocks


@dataclass(frozen=True)
class LMHead:
    """How hidden states [N, D] become logits [N, V]: cap * tanh(scale * (h W^T + bias) / cap)."""

    weight: Callable[[], Tensor]
    """The weight [V, D], fetched at each use: a method may swap it."""
    bias: Callable[[], Tensor | None]
    scale: float = 1.0
    """Granite divides, Cohere multiplies."""
    softcap: float | None = None
    """Gemma 2."""
    plain: bool = False
    """All logits at once, by torch's own functions: slow, and what the other way is held to."""
    kernels: Callable[[Tensor], Any] = lambda z: None
    """Logits [C, V], as they come from the product -> compiled kernels that take them (model/compiled.py), or None."""
    kept: dict[torch.dtype, tuple[Tensor, tuple[int, int], Tensor]] = field(default_factory=dict, compare=False, repr=False)
    """What `rounded` keeps: of which weight, where it lay and its version, and the copy."""

    @staticmethod
    def missing() -> "LMHead":
        """Of an encoder-only model: every use raises ModelError."""
        return LMHead(weight=_refuse, bias=_refuse)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V] in fp32."""
        return self.by(hidden, self.weight(), self.bias())

    def by(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The logits with a weight and a bias that were fetched before."""
        z = torch.nn.functional.linear(hidden, weight.to(hidden.dtype)).float()
        if bias is not None:
            z = z + bias.float()
        return self.shape(z)

    def rounded(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in the precision that is computed in; a copy of a frozen one is kept."""
        if weight.dtype == dtype or weight.requires_grad:
            return weight.detach().to(dtype)
        state, known = (weight.data_ptr(), weight._version), self.kept.get(dtype)
        if known is None or known[0] is not weight or known[1] != state:
            known = self.kept[dtype] = (weight, state, weight.detach().to(dtype))
        return known[2]

    def shape(self, z: Tensor) -> Tensor:
        z = z * self.scale if self.scale != 1.0 else z
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[N, D], [N] -> [N]: the log-probability of each target, in fp32, differentiable."""
        if self.plain:
            return self.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        weight, bias = self.weight(), self.bias()
        simple = self.softcap is None and (bias is None or not bias.requires_grad)
        if not simple:
            return _plain_logprobs(self, hidden, targets, weight, bias)
        return _Logprobs.apply(hidden, weight, bias, targets, self)


def _refuse() -> Tensor:
    raise ModelError("the base model is encoder-only: it has no language-model head. Use an objective with its own head.")


def _plain_logprobs(head: LMHead, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For unusual heads: autograd through each chunk, recomputed in the backward pass, with the weights of the forward
    pass (a regularizer may have put others in their place by then)."""

    def score(h: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return head.by(h, weight, bias).log_softmax(-1).gather(1, y[:, None])[:, 0]

    parts = [
        checkpoint(score, hidden[i : i + CHUNK], targets[i : i + CHUNK], weight, bias, use_reentrant=False)
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.cat(parts) if parts else hidden.float().sum(-1)  # of no tokens: []


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: LMHead) -> Tensor:
        w = head.rounded(weight, hidden.dtype)
        need_h, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        out = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        jacobian = torch.empty_like(hidden) if need_h else None  # [N, D]
        logsum = torch.empty_like(out) if need_w else None
        chunk = _chunk(w)
        for at in range(0, len(targets), chunk):
            part = slice(at, at + chunk)
            scored = _scored(torch.mm(hidden[part], w.T), bias, targets[part], head)
            out[part] = scored.logprobs
            if logsum is not None:
                logsum[part] = scored.logsum
            if jacobian is not None:
                jacobian[part] = _over_words(scored.slope(), w).mul_(head.scale)
        ctx.head = head
        ctx.save_for_backward(jacobian, *((hidden, weight, bias, targets, logsum) if need_w else ()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads  # [N]
        jacobian, *kept = ctx.saved_tensors
        dh = None if jacobian is None else (jacobian * g[:, None].to(jacobian.dtype))
        return dh, _weight_gradient(kept, g, ctx.head) if kept else None, None, None, None


def _weight_gradient(kept: list[Any], g: Tensor, head: LMHead) -> Tensor:
    """[V, D]"""
    hidden, weight, bias, targets, logsum = kept
    dw, by = torch.empty_like(weight), (g * head.scale).contiguous()
    words = max(1, len(weight) * _chunk(weight) // max(1, len(targets)))  # at once, so that z is as large as ever
    for at in range(0, len(weight), words):
        part = slice(at, at + words)
        z = torch.mm(hidden, weight[part].to(hidden.dtype).T)  # [N, some of V]
        scored = _scored(z, None if bias is None else bias[part], targets - at, head, logsum)
        dw[part] = torch.mm(scored.slope(by).T, hidden)
    return dw


def _chunk(weight: Tensor) -> int:
    """How many tokens are scored at once."""
    most = 2 * LOGITS if weight.is_cuda else LOGITS * weight.element_size() // 4  # in bf16 half as many: products are quick
    return max(FEWEST, min(CHUNK, most // len(weight)))


class _ByTorch:
    """A chunk of tokens, from the products h W^T [C, V] to the log-probability of each target and to its slope.

    Args:
        y: [C], each token's target; where `logsum` is known it may be none of these words.
        logsum: [C], the log of all words' sum.
    """

    def __init__(self, z: Tensor, bias: Tensor | None, y: Tensor, scale: float, logsum: Tensor | None = None) -> None:
        self.dtype, self.y, z = z.dtype, y[:, None], z.float()  # in place from here on
        if bias is not None:
            z.add_(bias.float())
        if scale != 1.0:
            z.mul_(scale)
        if logsum is not None:
            self.logsum, self.powers, self.sums = logsum, z.sub_(logsum[:, None]).exp_(), 1.0
            return
        wanted, most = z.gather(1, self.y), z.amax(1, keepdim=True)
        self.powers = z.sub_(most).exp_()
        self.sums = self.powers.sum(1, keepdim=True)
        self.logsum = (most + self.sums.log())[:, 0]
        self.logprobs = wanted[:, 0] - self.logsum

    def slope(self, g: Tensor | None = None) -> Tensor:
        """[C, V]: of g log p(y), along the logits."""
        last = self.powers.shape[1] - 1
        here = ((self.y >= 0) & (self.y <= last)).float()
        p = self.powers.div_(-self.sums).scatter_add_(1, self.y.clamp(0, last), here)
        return (p if g is None else p.mul_(g[:, None])).to(self.dtype)


class _ByKernels:
    """The same, in one pass each and in place: no logits in fp32."""

    def __init__(
        self, z: Tensor, bias: Tensor | None, y: Tensor, scale: float, logsum: Tensor | None, kernels: Any
    ) -> None:
        self.z, self.y, self.kernels = z, y.contiguous(), kernels
        self.bias, self.scale = None if bias is None else bias.detach().float().contiguous(), float(scale)
        self.logsum = torch.empty(len(y)) if logsum is None else logsum
        if logsum is None:
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < z.shape[1]:
                raise IndexError(f"a target is no word: the vocabulary has {z.shape[1]:,}")
            self.logprobs = torch.empty(len(y))
            kernels("log_probability", z, self.bias, self.y, self.logprobs, self.logsum, *z.shape, self.scale)

    def slope(self, g: Tensor | None = None) -> Tensor:
        self.kernels("log_probability_backward", self.z, self.bias, self.y, self.logsum, g, *self.z.shape, self.scale)
        return self.z


def _scored(z: Tensor, bias: Tensor | None, y: Tensor, head: LMHead, logsum: Tensor | None = None) -> _ByTorch | _ByKernels:
    kernels = head.kernels(z)
    if kernels is None:
        return _ByTorch(z, bias, y, head.scale, logsum)
    return _ByKernels(z, bias, y, head.scale, logsum, kernels)


def _over_words(p: Tensor, w: Tensor) -> Tensor:
    """p [C, V] @ w [V, D]. For few rows some BLAS add up all V products one after another (relative error 1e-4 in fp32
    at V = 49k, 1e-7 in blocks): rows of noughts bring them to the blocked way."""
    rows = len(p)
    return torch.mm(p if rows >= ENOUGH else torch.nn.functional.pad(p, (0, 0, 0, ENOUGH - rows)), w)[:rows]
