"""What decoders with rotary position embeddings share: attention and gated MLP, on rows packed end to end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weitiao.core.batch import Batch
from weitiao.model.adapters.low_rank import fused_forward, qkv
from weitiao.model.layers.attention import attend
from weitiao.model.layers.fused import rotate

Norm = Callable[[Any, Tensor], Tensor]
"""(the family's norm module, x) -> normalized x."""


@dataclass(frozen=True)
class RotaryTables:
    """The rotary embedding of a batch's positions: cos and sin [T, 1, d / 2]."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Rotate queries or keys [T, H, d]; or [N, H, d] at `rows`."""
        cos, sin = (self.cos, self.sin) if rows is None else (self.cos[rows], self.sin[rows])
        return rotate(x, cos, sin)


def rotary_tables(rotary_embedding: Any, x: Tensor, batch: Batch, *args: Any) -> RotaryTables:
    """From the family's rotary embedding, which returns [1, T, d] with two equal halves.

    Args:
        args: passed on to it (Gemma 3: the layer type).
    """
    cos, sin = rotary_embedding(x[None], batch.position_ids[None], *args)
    half = cos.shape[-1] // 2
    return RotaryTables(*(y[0, :, None, :half].to(x.dtype).contiguous() for y in (cos, sin)))


def attention(module: Any, x: Tensor, tables: RotaryTables, batch: Batch, norm: Norm, rows: Tensor | None = None) -> Tensor:
    """[T, D] -> [T, D]; or [N, D] at `rows`. Queries and keys are normalized where the family does so."""
    projected = qkv(x, rows, module.q_proj, module.k_proj, module.v_proj)
    q, k, v = (y.unflatten(-1, (-1, module.head_dim)) for y in projected)  # [T, H, d]
    if hasattr(module, "q_norm"):
        q, k = norm(module.q_norm, q), norm(module.k_norm, k)
    y = attend(
        tables.rotate(q, rows),
        tables.rotate(k),
        v,
        batch,
        module.scaling,
        window=getattr(module, "sliding_window", None),
        softcap=getattr(module, "attn_logit_softcapping", None),
        dropout=module.attention_dropout if module.training else 0.0,
        query_tokens=rows,
    )
    return module.o_proj(y.flatten(1))


def mlp(module: Any, x: Tensor, gate: Callable[[Tensor, Tensor], Any]) -> Tensor:
    """down_proj(gate(gate_proj x, up_proj x))."""
    return module.down_proj(gate(*fused_forward(x, module.gate_proj, module.up_proj)))
