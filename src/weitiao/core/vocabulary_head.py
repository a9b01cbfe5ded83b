"""The language-model head, scored in one pass over chunks of tokens, so that [T, V] never exists.

For a token with hidden state h, target y and logits z = s W h:

    log p(y) = z_y - logsumexp(z)          d log p(y) / dh = s (W_y - softmax(z) W) = J   [D]

J is one row of width D a token and does not depend on the loss. So the forward pass keeps J (and drops z), and the
backward pass is a row-wise product with the incoming gradient: the head's GEMMs run once each way, in the model's own
dtype, with fp32 sums. When the head itself is trained, its gradient needs z again, which is made again chunk by chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK = 256  # tokens scored at once, at most
LOGITS = 2**23  # numbers in [chunk, V], at most: 32 MB in fp32, for glibc fetches larger blocks anew each time; but
FEWEST = 128  # tokens at once, at least (134 MB with 262k words): the whole weight is read for each chunk
ENOUGH = 32  # rows from which matrix products add up in blocks


@dataclass(frozen=True)
class VocabularyHead:
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

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V] in fp32."""
        return self.by(hidden, self.weight(), self.bias())

    def by(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The logits with a weight and a bias that were fetched before."""
        z = torch.nn.functional.linear(hidden, weight.to(hidden.dtype)).float()
        if bias is not None:
            z = z + bias.float()
        return self.shape(z)

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
        return _Logprobs.apply(hidden, weight, bias, targets, self.scale)  # pyright: ignore[reportReturnType]


def _plain_logprobs(head: VocabularyHead, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For unusual heads: autograd through each chunk, recomputed in the backward pass, with the weights of the forward
    pass (a regularizer may have put others in their place by then)."""

    def score(h: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return head.by(h, weight, bias).log_softmax(-1).gather(1, y[:, None])[:, 0]

    parts = [
        checkpoint(score, hidden[i : i + CHUNK], targets[i : i + CHUNK], weight, bias, use_reentrant=False)
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float) -> Tensor:
        w = weight.to(hidden.dtype)
        need_h, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        out = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        jacobian = torch.empty_like(hidden) if need_h else None  # [N, D]
        logsum = torch.empty_like(out) if need_w else None
        chunk = _chunk(w)
        for at in range(0, len(targets), chunk):
            part = slice(at, at + chunk)
            h, y = hidden[part], targets[part, None]
            z = _logits(h, w, bias, scale)  # [C, V] fp32; in place from here on
            wanted, most = z.gather(1, y), z.amax(1, keepdim=True)
            sums = z.sub_(most).exp_().sum(1, keepdim=True)
            lse = most + sums.log()
            out[part] = (wanted - lse)[:, 0]
            if logsum is not None:
                logsum[part] = lse[:, 0]
            if jacobian is not None:
                z.div_(sums.neg_())
                z.scatter_add_(1, y, torch.ones_like(y, dtype=z.dtype))
                jacobian[part] = _over_words(z.to(h.dtype), w).mul_(scale)
        ctx.scale = scale
        ctx.save_for_backward(jacobian, *((hidden, weight, bias, targets, logsum) if need_w else ()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads  # [N]
        jacobian, *kept = ctx.saved_tensors
        dh = None if jacobian is None else (jacobian * g[:, None].to(jacobian.dtype))
        dw = None
        if kept:
            hidden, weight, bias, targets, logsum = kept
            w = weight.to(hidden.dtype)
            dw = torch.zeros_like(weight, dtype=torch.float32)
            chunk = _chunk(w)
            for at in range(0, len(targets), chunk):
                part = slice(at, at + chunk)
                h, y = hidden[part], targets[part, None]
                p = _logits(h, w, bias, ctx.scale).sub_(logsum[part, None]).exp_().neg_()
                p.scatter_add_(1, y, torch.ones_like(y, dtype=p.dtype))
                p.mul_((g[part] * ctx.scale)[:, None])
                dw += torch.mm(p.to(h.dtype).T, h)
            dw = dw.to(weight.dtype)
        return dh, dw, None, None, None


def _chunk(weight: Tensor) -> int:
    """How many tokens are scored at once."""
    most = 2 * LOGITS if weight.is_cuda else LOGITS * weight.element_size() // 4  # in bf16 half as many: products are quick
    return max(FEWEST, min(CHUNK, most // len(weight)))


def _logits(h: Tensor, w: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    z = torch.mm(h, w.T).float()
    if bias is not None:
        z.add_(bias.float())
    return z.mul_(scale) if scale != 1.0 else z


def _over_words(p: Tensor, w: Tensor) -> Tensor:
    """p [C, V] @ w [V, D]. For few rows some BLAS add up all V products one after another (relative error 1e-4 in fp32
    at V = 49k, 1e-7 in blocks): rows of noughts bring them to the blocked way."""
    rows = p.shape[0]
    return torch.mm(torch.nn.functional.pad(p, (0, 0, 0, max(0, ENOUGH - rows))), w)[:rows]
