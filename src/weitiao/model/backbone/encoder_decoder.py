"""A model of two halves (T5, BART, Marian): an encoder reads the row's source, a decoder writes its target. Whisper hears.

    row       the 3rd of May 2024 </s> | <start> 2 0 2 4 - 0 5 - 0 3
    labels    -  -   -  -   -    -     |    2    0 2 4 - 0 5 - 0 3 </s>
              the encoder's half       |    the decoder's: from the first label on

    heard     .  .  .  .  .  .  .  .   | <start> <en> Good morning          labels from <en> on
              places (HEARD)           |

So a row by itself says where its halves meet, and hidden states [T, D] stand at the tokens they belong to.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from weitiao.core.batch import AUDIO_PLACEHOLDER, IGNORE, INPUT_FEATURES, AnnotatedRow, Batch, pack, select_segments
from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision
from weitiao.core.hardware import NARROW
from weitiao.core.lm_head import LMHead
from weitiao.core.trainable_model import Backbone
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.kernels.library import kernels_for_logits

NEAR = 2e-2  # of the largest logit
SAVED = 256  # tokens of padding that are worth one more pass through the model; more where its layers are narrow


def encoder_decoder(batch: Batch) -> list[tuple[int, int, int]]:
    """Of each row, where it begins, where its decoder's half begins, and where it ends."""
    found, input_features = [], INPUT_FEATURES in batch.more
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        if input_features:
            found.append((a, a + int((batch.input_ids[a:b] == AUDIO_PLACEHOLDER).sum()), b))
            continue
        learnt = (batch.labels[a:b] != IGNORE).nonzero()[:1, 0].tolist()
        found.append((a, a + learnt[0] if learnt else b, b))
    return found


def hidden(model: Any, batch: Batch) -> Tensor:
    """[T, D]: the encoder's last hidden states at the source, the decoder's at the target. Rows of like length are padded
    together, and masks keep them apart; rows that write nothing are only read."""
    out = {}
    saved = SAVED * max(1, NARROW // model.config.hidden_size) ** 2
    for group in alike(encoder_decoder(batch), saved):
        out.update(zip(group, _together(model, select_segments(batch, group))))
    return torch.cat([out[i] for i in range(len(out))])


def alike(parts: Sequence[tuple[int, int, int]], saved: int) -> list[list[int]]:
    """The rows in groups of like length, as long as parting a group saves so many tokens of padding."""

    def longest(rows: Iterable[int]) -> list[int]:
        """Up to each row: the longest source and the longest target, together."""
        sizes = ((parts[i][1] - parts[i][0], parts[i][2] - parts[i][1]) for i in rows)
        return [sum(x) for x in accumulate(sizes, lambda x, y: (max(x[0], y[0]), max(x[1], y[1])))]

    def part(rows: list[int]) -> list[list[int]]:
        many, front, back = len(rows), longest(rows), longest(reversed(rows))[::-1]
        costs = [cut * front[cut - 1] + (many - cut) * back[cut] for cut in range(1, many)]
        if not costs or many * front[-1] - min(costs) < saved:
            return [rows]
        cut = costs.index(min(costs)) + 1
        return [*part(rows[:cut]), *part(rows[cut:])]

    return part(sorted(range(len(parts)), key=lambda i: parts[i][2] - parts[i][0]))


def _together(model: Any, batch: Batch) -> list[Tensor]:
    """[t, D] of each row, all padded to the longest."""
    parts, ids = encoder_decoder(batch), batch.input_ids
    seen, kept = _encoded(model, batch, parts)
    out = [[x[: m - a]] for x, (a, m, _) in zip(seen, parts)]
    writing = [i for i, (_, m, b) in enumerate(parts) if b > m]
    if writing:
        begun, real = _padded([ids[parts[i][1] : parts[i][2]] for i in writing])
        at = torch.tensor(writing, device=ids.device)
        mask = {} if kept is None else {"encoder_attention_mask": kept[at]}
        said = model.get_decoder()(
            input_ids=begun, attention_mask=real, encoder_hidden_states=seen[at], use_cache=False, **mask
        ).last_hidden_state
        for i, x in zip(writing, said):
            out[i].append(x[: parts[i][2] - parts[i][1]])
    return [torch.cat(both) for both in out]


def _encoded(model: Any, batch: Batch, parts: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor | None]:
    """[B, S, D], and which of them are real [B, S]; None: all, since each sound is filled up with silence that counts."""
    sound = batch.more.get(INPUT_FEATURES)
    if sound is not None:
        encoder = model.get_encoder()
        return encoder(sound.to(next(encoder.parameters()).dtype)).last_hidden_state, None
    read, kept = _padded([batch.input_ids[a:m] for a, m, _ in parts])
    return model.get_encoder()(input_ids=read, attention_mask=kept).last_hidden_state, kept


def choose_backbone(
    model: Any, in_dtype: Callable[[Callable[[Batch], Tensor]], Backbone], tolerance: float
) -> tuple[Backbone, Decision]:
    """All rows at once, padded, if on a probe that is each row alone; else one by one."""
    padded = in_dtype(lambda batch: hidden(model, batch))
    alone = in_dtype(
        lambda batch: torch.cat([hidden(model, select_segments(batch, [i])) for i in range(len(batch.lengths))])
    )
    with torch.no_grad():
        probe = _probe(model)
        gap = float((padded(probe) - alone(probe)).abs().max() / alone(probe).abs().max())
    if gap <= tolerance:
        reason = f"encoder and decoder, padded: on a probe within {gap:.0e} of each row alone"
        return padded, Decision("model.block", "transformers", reason)
    reason = f"padded rows would differ from rows alone by {gap:.0e}: slower, but right"
    return alone, Decision("model.block", "transformers, row by row", reason)


def make_lm_head(model: Any) -> LMHead:
    """The output head as a function of the decoder's hidden states: T5 scales them, BART adds a bias of its own.

    Raises:
        ModelError: it does not give the model's own logits on a probe.
    """
    layer, own = model.get_output_embeddings, getattr(model, "final_logits_bias", None)

    def bias() -> Tensor | None:
        plain = getattr(layer(), "bias", None)
        return plain if own is None else own[0] if plain is None else own[0] + plain

    probe = _probe(model)
    ids = probe.input_ids[probe.input_ids != AUDIO_PLACEHOLDER][None]
    given = {"input_ids": ids}
    if architecture_of(model.config).modality == "speech":
        given = {"input_features": probe.more[INPUT_FEATURES][:1].to(next(model.parameters()).dtype)}
    with torch.no_grad():
        wanted = model(**given, decoder_input_ids=ids, use_cache=False).logits[0].float()
        seen = model.get_encoder()(**given).last_hidden_state
        inner = model.get_decoder()(input_ids=ids, encoder_hidden_states=seen, use_cache=False).last_hidden_state[0]
        for scale in (1.0, inner.shape[-1] ** -0.5):
            head = LMHead(weight=lambda: layer().weight, bias=bias, scale=scale, kernels=kernels_for_logits)
            if float((head.logits(inner) - wanted).abs().max() / wanted.abs().max()) <= NEAR:
                return head
    raise ModelError(f"base: the head of {type(model).__name__} does something that weitiao does not know.")


def _probe(model: Any) -> Batch:
    """Three rows of random tokens, of unequal halves; or two of random sound and unequal tokens."""
    random, many = torch.Generator().manual_seed(0), model.config.vocab_size
    if architecture_of(model.config).modality == "speech":
        places, mels = model.config.max_source_positions, model.config.num_mel_bins
        said = [torch.randint(0, many, (n,), generator=random).tolist() for n in (5, 3)]
        rows = [{"input_ids": [AUDIO_PLACEHOLDER] * places + x, "labels": [IGNORE] * places + x} for x in said]
        sounds = [torch.rand(mels, 2 * places, generator=random) for _ in said]
        made = pack([AnnotatedRow(**row, input_features=lambda x=x: x) for row, x in zip(rows, sounds)])
    else:
        rows = [(torch.randint(0, many, (n,), generator=random).tolist(), m) for n, m in ((13, 9), (9, 4), (9, 6))]
        made = pack([{"input_ids": x, "labels": [IGNORE] * m + x[m:]} for x, m in rows])
    return made.to(next(model.parameters()).device)


def _padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Filled up with noughts behind; and 1 where they are real: both [B, longest]."""
    kept = pad_sequence([torch.ones_like(x) for x in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True), kept
