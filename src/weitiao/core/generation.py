"""What a decoder writes of what an encoder reads or hears, by transformers' generation: greedy, or by beam search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin


def generate_from_text(
    model: Any, sources: Sequence[Sequence[int]], stop_ids: Sequence[int], room: int, num_beams: int
) -> list[list[int]]:
    """Ids [rows][T] of what is written of texts; padded behind, since some models count places from the front."""
    ids, real = right_padded(sources, max(map(len, sources)), next(model.parameters()).device)
    out = model.generate(
        input_ids=ids,
        attention_mask=real,
        max_new_tokens=room,
        eos_token_id=list(stop_ids),
        num_beams=num_beams,
        do_sample=False,
    )
    return out[:, 1:].tolist()


def generate_from_audio(
    model: Any, begun: Sequence[Sequence[int]], input_features: Tensor, stop_ids: Sequence[int], room: int, num_beams: int
) -> list[list[int]]:
    """Ids [rows][T] of what is written of sounds.

    Args:
        begun: what the decoder is told first, of equal length in all rows.
        heard: features [rows, mels, 2 S].
    """
    weight = next(model.parameters())
    ids = torch.tensor([list(x) for x in begun], device=weight.device)
    # GenerationMixin's own: Whisper's would choose what the decoder is told
    out: Any = GenerationMixin.generate(  # pyright: ignore[reportAttributeAccessIssue]
        model,
        input_features=input_features.to(weight.device, weight.dtype),
        decoder_input_ids=ids,
        max_new_tokens=min(room, model.config.max_target_positions - ids.shape[1]),
        eos_token_id=list(stop_ids),
        num_beams=num_beams,
        do_sample=False,
    )
    return out[:, ids.shape[1] :].tolist()


def right_padded(rows: Sequence[Sequence[int]], wide: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids filled up with noughts, and 1 where they are real: both [rows, wide]."""
    ids = torch.tensor([list(r) + [0] * (wide - len(r)) for r in rows], device=device)
    real = torch.tensor([[1] * len(r) + [0] * (wide - len(r)) for r in rows], device=device)
    return ids, real
