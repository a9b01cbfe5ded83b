"""The language-model head. Its log-probabilities are computed in chunks of tokens, so that [T, V] never exists.

For a token with hidden state h, target y and logits z = s W h:

    log p(y) = z_y - logsumexp(z)          d log p(y) / dh = s (W_y - softmax(z) W) = J   [D]

J is one row of width D per token and does not depend on the loss. So the forward pass keeps J and drops z, and the backward
pass multiplies J with the incoming gradient: the head's matrix products run once, in the model's own dtype, with fp32 sums.
If the head itself is trained, its gradient needs z again. That is computed for a block of the vocabulary and all tokens at
a time, so that each vocabulary entry's gradient is one product.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from weitiao.core.errors import ModelError

CHUNK = 256  # tokens per chunk, at most
MAX_LOGITS = 2**23  # elements of [chunk, V], at most: 32 MB in fp32 (glibc maps larger blocks at each allocation), but ...
MIN_CHUNK = 128  # ... tokens per chunk, at least (134 MB with V = 262k): every chunk reads the whole weight
MIN_BLOCKED_ROWS = 32  # from this number of rows on, BLAS sums matrix products in blocks


@dataclass(frozen=True)
class LMHead:
    """Hidden states [N, D] -> logits [N, V]: cap * tanh(scale * (h W^T + bias) / cap)."""

    weight: Callable[[], Tensor]
    """Returns the weight [V, D]; called at each use, since a method may replace it."""
    bias: Callable[[], Tensor | None]
    scale: float = 1.0
    """Granite, Cohere, T5."""
    softcap: float | None = None
    """Gemma 2."""
    plain: bool = False
    """All logits at once, by torch's own functions: the slow reference implementation."""
    kernels: Callable[[Tensor], Any] = lambda logits: None
    """Returns compiled kernels (model/kernels/) that can process these logits [C, V], or None."""
    linear: Callable[[Tensor, Tensor], Tensor] = nn.functional.linear
    """The product for `logits`."""
    num_frozen: Callable[[], int] = lambda: 0
    """Returns how many of the weight's first rows take no gradient though others do (new tokens behind a frozen head)."""
    _rounded: dict[torch.dtype, tuple[Tensor, tuple[int, int], Tensor]] = field(
        default_factory=dict, compare=False, repr=False
    )
    """dtype -> (a frozen weight, its storage and version, its copy in that dtype)."""

    @staticmethod
    def missing() -> "LMHead":
        """The head of an encoder-only model: every use raises ModelError."""
        return LMHead(weight=_refuse, bias=_refuse)

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [N, V] in fp32."""
        return self.logits_with(hidden, self.weight(), self.bias())

    def logits_with(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The logits with a given weight and bias."""
        z = self.linear(hidden, weight.to(hidden.dtype)).float()
        if bias is not None:
            z = z + bias.float()
        z = z * self.scale if self.scale != 1.0 else z
        return self.softcap * torch.tanh(z / self.softcap) if self.softcap else z

    def normalized(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[N, D] -> logits [N, V], in fp32 or as they were computed, and the logarithm of the sum of their powers [N]."""
        if self.bias() is None and self.scale == 1.0 and not self.softcap:
            z = self.linear(hidden, self.rounded(self.weight(), hidden.dtype))
            if (kernels := self.kernels(z)) is not None:
                zeros = torch.zeros(len(z), dtype=torch.long)
                return z, _KernelLogSoftmax(z, None, zeros, self.scale, None, kernels).logsumexp
            return z, z.float().logsumexp(-1)
        logits = self.logits(hidden)
        return logits, logits.logsumexp(-1)

    def rounded(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight in the compute dtype. Of a frozen weight, the copy is kept until the weight changes."""
        if weight.dtype == dtype or weight.requires_grad:
            return weight.detach().to(dtype)
        version, entry = (weight.untyped_storage()._cdata, weight._version), self._rounded.get(dtype)
        if entry is None or entry[0] is not weight or entry[1] != version:
            entry = self._rounded[dtype] = (weight, version, weight.detach().to(dtype))
        return entry[2]

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[N, D], [N] -> [N]: the log-probability of each target, in fp32, differentiable."""
        if self.plain:
            return self.logits(hidden).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        weight, bias = self.weight(), self.bias()
        if self.softcap is not None or (bias is not None and bias.requires_grad):
            return _checkpointed_logprobs(self, hidden, targets, weight, bias)
        return _Logprobs.apply(hidden, weight, bias, targets, self)


def _refuse() -> Tensor:
    raise ModelError("the base model is encoder-only: it has no language-model head. Use an objective with its own head.")


def _checkpointed_logprobs(head: LMHead, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """For heads with a softcap or a trained bias: autograd through each chunk, computed again in the backward pass.

    With the weights of the forward pass: a regularizer may have replaced them by then.
    """

    def score(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return head.logits_with(hidden, weight, bias).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    chunks = [
        checkpoint(score, hidden[i : i + CHUNK], targets[i : i + CHUNK], weight, bias, use_reentrant=False)
        for i in range(0, len(targets), CHUNK)
    ]
    return torch.cat(chunks) if chunks else hidden.float().sum(-1)  # no tokens: []


class _Logprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: LMHead) -> Tensor:
        w = head.rounded(weight, hidden.dtype)
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        logprobs = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        jacobian = torch.empty_like(hidden) if needs_hidden else None  # [N, D]
        logsumexp = torch.empty_like(logprobs) if needs_weight else None
        chunk_size = _chunk_size(w)
        for start in range(0, len(targets), chunk_size):
            chunk = slice(start, start + chunk_size)
            softmax = _log_softmax(torch.mm(hidden[chunk], w.T), bias, targets[chunk], head)
            logprobs[chunk] = softmax.logprobs
            if logsumexp is not None:
                logsumexp[chunk] = softmax.logsumexp
            if jacobian is not None:
                jacobian[chunk] = _mm_over_vocabulary(softmax.gradient(), w).mul_(head.scale)
        ctx.head = head
        ctx.save_for_backward(jacobian, *((hidden, weight, bias, targets, logsumexp) if needs_weight else ()))
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (g,) = grads  # [N]
        jacobian, *for_weight = ctx.saved_tensors
        hidden_gradient = None if jacobian is None else jacobian * g[:, None].to(jacobian.dtype)
        weight_gradient = _weight_gradient(for_weight, g, ctx.head) if for_weight else None
        return hidden_gradient, weight_gradient, None, None, None


def _weight_gradient(saved: list[Any], g: Tensor, head: LMHead) -> Tensor:
    """[V, D]; undefined where the head says that its rows are frozen."""
    hidden, weight, bias, targets, logsumexp = saved
    gradient, factors = torch.empty_like(weight), (g * head.scale).contiguous()
    # all tokens and a block of the vocabulary: as many logits at once as in the forward pass
    block_size = max(1, len(weight) * _chunk_size(weight) // max(1, len(targets)))
    for start in range(head.num_frozen(), len(weight), block_size):
        block = slice(start, start + block_size)
        z = torch.mm(hidden, weight[block].to(hidden.dtype).T)  # [N, block]
        softmax = _log_softmax(z, None if bias is None else bias[block], targets - start, head, logsumexp)
        gradient[block] = torch.mm(softmax.gradient(factors).T, hidden)
    return gradient


def _chunk_size(weight: Tensor) -> int:
    """Tokens per chunk. Half as many in bf16 on a CPU, where products are fast and the rest takes the time."""
    max_logits = 2 * MAX_LOGITS if weight.is_cuda else MAX_LOGITS * weight.element_size() // 4
    return max(MIN_CHUNK, min(CHUNK, max_logits // len(weight)))


class _TorchLogSoftmax:
    """Log-probabilities of the targets, and their gradient with respect to the logits, by torch's functions.

    Args:
        z: h W^T [C, V], or of a block of the vocabulary; overwritten.
        targets: [C]; where `logsumexp` is given, they may be outside of the block.
        logsumexp: [C], over the whole vocabulary; None: computed here.
    """

    def __init__(
        self, z: Tensor, bias: Tensor | None, targets: Tensor, scale: float, logsumexp: Tensor | None = None
    ) -> None:
        self.dtype, self.targets, z = z.dtype, targets[:, None], z.float()  # changed in place from here on
        if bias is not None:
            z.add_(bias.float())
        if scale != 1.0:
            z.mul_(scale)
        if logsumexp is not None:
            self.logsumexp, self.exp, self.sums = logsumexp, z.sub_(logsumexp[:, None]).exp_(), 1.0
            return
        target_logits, largest = z.gather(1, self.targets), z.amax(1, keepdim=True)
        self.exp = z.sub_(largest).exp_()
        self.sums = self.exp.sum(1, keepdim=True)
        self.logsumexp = (largest + self.sums.log())[:, 0]
        self.logprobs = target_logits[:, 0] - self.logsumexp

    def gradient(self, g: Tensor | None = None) -> Tensor:
        """[C, V]: the gradient of g log p(target), one_hot(target) - softmax(z), times g."""
        last = self.exp.shape[1] - 1
        in_block = ((self.targets >= 0) & (self.targets <= last)).float()
        gradient = self.exp.div_(-self.sums).scatter_add_(1, self.targets.clamp(0, last), in_block)
        return (gradient if g is None else gradient.mul_(g[:, None])).to(self.dtype)


class _KernelLogSoftmax:
    """The same by compiled kernels: one pass each, in place, without logits in fp32."""

    def __init__(
        self, z: Tensor, bias: Tensor | None, targets: Tensor, scale: float, logsumexp: Tensor | None, kernels: Any
    ) -> None:
        self.z, self.targets, self.kernels = z, targets.contiguous(), kernels
        self.bias, self.scale = None if bias is None else bias.detach().float().contiguous(), float(scale)
        self.logsumexp = torch.empty(len(targets)) if logsumexp is None else logsumexp
        if logsumexp is None:
            if kernels.reads_values and len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < z.shape[1]:
                raise IndexError(f"a target is outside the vocabulary of {z.shape[1]:,} tokens")
            self.logprobs = torch.empty(len(targets))
            kernels("log_probability", z, self.bias, self.targets, self.logprobs, self.logsumexp, *z.shape, self.scale)

    def gradient(self, g: Tensor | None = None) -> Tensor:
        sizes = (*self.z.shape, self.scale)
        self.kernels("log_probability_backward", self.z, self.bias, self.targets, self.logsumexp, g, *sizes)
        return self.z


def _log_softmax(
    z: Tensor, bias: Tensor | None, targets: Tensor, head: LMHead, logsumexp: Tensor | None = None
) -> _TorchLogSoftmax | _KernelLogSoftmax:
    kernels = head.kernels(z)
    if kernels is None:
        return _TorchLogSoftmax(z, bias, targets, head.scale, logsumexp)
    return _KernelLogSoftmax(z, bias, targets, head.scale, logsumexp, kernels)


def _mm_over_vocabulary(p: Tensor, w: Tensor) -> Tensor:
    """p [C, V] @ w [V, D].

    For few rows some BLAS sum all V products one after another (relative error in fp32 at V = 49k: 1e-4; in blocks: 1e-7).
    Rows of zeros make them sum in blocks.
    """
    num_rows = len(p)
    if num_rows < MIN_BLOCKED_ROWS:
        p = nn.functional.pad(p, (0, 0, 0, MIN_BLOCKED_ROWS - num_rows))
    return torch.mm(p, w)[:num_rows]
