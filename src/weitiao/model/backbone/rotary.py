"""What decoders with rotary positions share: their attention and their gated MLP, over rows laid end to end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weitiao.core.batch import Batch
from weitiao.model.adapters.low_rank import fused_forward, qkv
from weitiao.model.layers.attention import attend
from weitiao.model.layers.fused import Rotary

Norm = Callable[[Any, Tensor], Tensor]
"""How a family's norm module is applied."""


@dataclass(frozen=True)
class RotaryTables:
    """The rotary positions of a batch's tokens: cos and sin [T, 1, d / 2]."""

    cos: Tensor
    sin: Tensor

    def of(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Queries or keys [T, H, d] turned; of some rows, [N, H, d]."""
        cos, sin = (self.cos, self.sin) if rows is None else (self.cos[rows], self.sin[rows])
        return Rotary.apply(x, cos, sin)


def rotary_tables(rotary: Any, x: Tensor, batch: Batch, *more: Any) -> RotaryTables:
    """Of a family's rotary module; it makes [1, T, d] of both halves alike."""
    cos, sin = rotary(x[None], batch.position_ids[None], *more)
    half = cos.shape[-1] // 2
    return RotaryTables(cos[0, :, None, :half].to(x.dtype), sin[0, :, None, :half].to(x.dtype))


def attention(at: Any, x: Tensor, turn: RotaryTables, batch: Batch, norm: Norm, rows: Tensor | None = None) -> Tensor:
    """[T, D] -> [T, D], or [N, D] at some rows; queries and keys are normed where the family does."""
    q, k, v = (y.unflatten(-1, (-1, at.head_dim)) for y in qkv(x, rows, at.q_proj, at.k_proj, at.v_proj))
    if hasattr(at, "q_norm"):
        q, k = norm(at.q_norm, q), norm(at.k_norm, k)
    q, k = turn.of(q, rows), turn.of(k)
    window, dropout = getattr(at, "sliding_window", None), at.attention_dropout if at.training else 0.0
    cap = getattr(at, "attn_logit_softcapping", None)
    y = attend(q, k, v, batch, at.scaling, window=window, softcap=cap, dropout=dropout, query_tokens=rows)
    return at.o_proj(y.flatten(1))


def mlp(module: Any, x: Tensor, gate: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """down(gate(gate_proj x, up_proj x))."""
    return module.down_proj(gate(*fused_forward(x, module.gate_proj, module.up_proj)))
