"""Encoder-decoder models (T5, BART, Marian, Whisper): the encoder reads a row's source, the decoder generates its target.

    row       the 3rd of May 2024 </s> | <start> 2 0 2 4 - 0 5 - 0 3
    labels    -  -   -  -   -    -     |    2    0 2 4 - 0 5 - 0 3 </s>
              source                   | target: from the first label on

    audio     .  .  .  .  .  .  .  .   | <start> <en> Good morning          labels from <en> on
              S AUDIO_PLACEHOLDER      |

So the row itself defines where source and target meet, and the hidden states [T, D] are at the tokens they belong to.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from weitiao.core.batch import AUDIO_PLACEHOLDER, IGNORE, INPUT_FEATURES, AnnotatedRow, Batch, pack, select_segments
from weitiao.core.errors import ModelError
from weitiao.core.finding import Decision
from weitiao.core.hardware import NARROW
from weitiao.core.lm_head import LMHead
from weitiao.core.messages import Message
from weitiao.core.trainable_model import Backbone
from weitiao.model.adapters.module_structure import architecture_of
from weitiao.model.kernels.library import kernels_for_logits

LOGITS_TOLERANCE = 2e-2  # relative to the largest logit
MIN_SAVING = 256  # tokens of padding that justify another pass through the model; more where its layers are narrow


class SourceTarget(NamedTuple):
    """Where a row's source and target are in the batch."""

    start: int
    target: int
    """The first token of the target; the end of the row if there is none."""
    end: int

    @property
    def source_length(self) -> int:
        return self.target - self.start

    @property
    def target_length(self) -> int:
        return self.end - self.target


def source_and_target(batch: Batch) -> list[SourceTarget]:
    """Source and target of each row."""
    parts, is_audio = [], INPUT_FEATURES in batch.more
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        if is_audio:
            target = a + int((batch.input_ids[a:b] == AUDIO_PLACEHOLDER).sum())
        else:
            first_label = (batch.labels[a:b] != IGNORE).nonzero()[:1, 0].tolist()
            target = a + first_label[0] if first_label else b
        parts.append(SourceTarget(a, target, b))
    return parts


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """[T, D]: the encoder's last hidden states at each source, the decoder's at each target.

    Rows of similar length are padded together, with masks; rows without a target run through the encoder only.
    """
    states = {}
    min_saving = MIN_SAVING * max(1, NARROW // model.config.hidden_size) ** 2
    for rows in group_by_length(source_and_target(batch), min_saving):
        states.update(zip(rows, _padded_forward(model, select_segments(batch, rows))))
    return torch.cat([states[i] for i in range(len(states))])


def group_by_length(parts: Sequence[SourceTarget], min_saving: int) -> list[list[int]]:
    """The rows in groups of similar length: it is split in two where that saves `min_saving` padding tokens or more."""

    def padded_lengths(rows: Iterable[int]) -> list[int]:
        """For the first row, the first two ...: the longest source plus the longest target."""
        sizes = ((parts[i].source_length, parts[i].target_length) for i in rows)
        return [sum(x) for x in accumulate(sizes, lambda x, y: (max(x[0], y[0]), max(x[1], y[1])))]

    def split(rows: list[int]) -> list[list[int]]:
        num_rows, front, back = len(rows), padded_lengths(rows), padded_lengths(reversed(rows))[::-1]
        costs = [cut * front[cut - 1] + (num_rows - cut) * back[cut] for cut in range(1, num_rows)]
        if not costs or num_rows * front[-1] - min(costs) < min_saving:
            return [rows]
        cut = costs.index(min(costs)) + 1
        return [*split(rows[:cut]), *split(rows[cut:])]

    return split(sorted(range(len(parts)), key=lambda i: parts[i].end - parts[i].start))


def _padded_forward(model: Any, batch: Batch) -> list[Tensor]:
    """[t, D] of each row, all padded to the longest."""
    parts = source_and_target(batch)
    encoded, mask = _encode(model, batch, parts)
    states = [[x[: part.source_length]] for x, part in zip(encoded, parts)]
    with_target = [i for i, part in enumerate(parts) if part.target_length]
    if with_target:
        targets, target_mask = _pad([batch.input_ids[parts[i].target : parts[i].end] for i in with_target])
        index = torch.tensor(with_target, device=targets.device)
        encoder_mask = {} if mask is None else {"encoder_attention_mask": mask[index]}
        decoded = model.get_decoder()(
            input_ids=targets,
            attention_mask=target_mask,
            encoder_hidden_states=encoded[index],
            use_cache=False,
            **encoder_mask,
        ).last_hidden_state
        for i, x in zip(with_target, decoded):
            states[i].append(x[: parts[i].target_length])
    return [torch.cat(source_and_target_states) for source_and_target_states in states]


def _encode(model: Any, batch: Batch, parts: list[SourceTarget]) -> tuple[Tensor, Tensor | None]:
    """The encoder's states [B, S, D], and a mask [B, S]; none for audio, which is padded with silence."""
    encoder, input_features = model.get_encoder(), batch.more.get(INPUT_FEATURES)
    if input_features is not None:
        return encoder(input_features.to(next(encoder.parameters()).dtype)).last_hidden_state, None
    ids, mask = _pad([batch.input_ids[part.start : part.target] for part in parts])
    return encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def choose_backbone(
    model: PreTrainedModel, in_dtype: Callable[[Callable[[Batch], Tensor]], Backbone], tolerance: float
) -> tuple[Backbone, Decision]:
    """All rows padded together if, on a probe, that gives the hidden states of each row alone; else one row at a time."""
    padded = in_dtype(lambda batch: hidden_states(model, batch))
    one_by_one = in_dtype(
        lambda batch: torch.cat([hidden_states(model, select_segments(batch, [i])) for i in range(len(batch.lengths))])
    )
    with torch.no_grad():
        probe = _probe(model)
        expected = one_by_one(probe)
        difference = float((padded(probe) - expected).abs().max() / expected.abs().max())
    if difference <= tolerance:
        reason = Message(
            "padded rows differ from single rows by at most {difference:.0e} on a probe", difference=difference
        )
        return padded, Decision("model.block", "transformers", reason)
    reason = Message("padded rows would differ from single rows by {difference:.0e} on a probe", difference=difference)
    return one_by_one, Decision("model.block", "transformers, row by row", reason)


def make_lm_head(model: Any) -> LMHead:
    """The output head as a function of the decoder's hidden states: T5 scales them, BART adds a bias of its own.

    Raises:
        ModelError: it does not give the model's own logits on a probe.
    """
    layer, own_bias = model.get_output_embeddings, getattr(model, "final_logits_bias", None)

    def bias() -> Tensor | None:
        layer_bias = getattr(layer(), "bias", None)
        if own_bias is None:
            return layer_bias
        return own_bias[0] if layer_bias is None else own_bias[0] + layer_bias

    probe = _probe(model)
    ids = probe.input_ids[probe.input_ids != AUDIO_PLACEHOLDER][None]
    source = {"input_ids": ids}
    if architecture_of(model.config).modality == "speech":
        source = {"input_features": probe.more[INPUT_FEATURES][:1].to(next(model.parameters()).dtype)}
    with torch.no_grad():
        expected = model(**source, decoder_input_ids=ids, use_cache=False).logits[0].float()
        encoded = model.get_encoder()(**source).last_hidden_state
        decoder = model.get_decoder()
        hidden = decoder(input_ids=ids, encoder_hidden_states=encoded, use_cache=False).last_hidden_state[0]
        for scale in (1.0, hidden.shape[-1] ** -0.5):  # the second: T5
            head = LMHead(weight=lambda: layer().weight, bias=bias, scale=scale, kernels=kernels_for_logits)
            difference = float((head.logits(hidden) - expected).abs().max() / expected.abs().max())
            if difference <= LOGITS_TOLERANCE:
                return head
    raise ModelError(
        "base: the output head of {model} is not supported: its logits differ from hidden states times the output "
        "embedding",
        model=type(model).__name__,
    )


def _probe(model: Any) -> Batch:
    """Three rows of random tokens with sources and targets of different lengths; or two of random audio."""
    generator, vocab_size = torch.Generator().manual_seed(0), model.config.vocab_size
    if architecture_of(model.config).modality == "speech":
        S, mels = model.config.max_source_positions, model.config.num_mel_bins
        targets = [torch.randint(0, vocab_size, (n,), generator=generator).tolist() for n in (5, 3)]
        features = [torch.rand(mels, 2 * S, generator=generator) for _ in targets]
        batch = pack(
            [
                AnnotatedRow(
                    input_ids=[AUDIO_PLACEHOLDER] * S + target,
                    labels=[IGNORE] * S + target,
                    input_features=lambda x=x: x,
                )
                for target, x in zip(targets, features)
            ]
        )
    else:
        rows = [(torch.randint(0, vocab_size, (n,), generator=generator).tolist(), m) for n, m in ((13, 9), (9, 4), (9, 6))]
        batch = pack([{"input_ids": ids, "labels": [IGNORE] * m + ids[m:]} for ids, m in rows])
    return batch.to(next(model.parameters()).device)


def _pad(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ids padded with zeros on the right, and a mask that is 1 at real tokens: both [B, longest]."""
    mask = pad_sequence([torch.ones_like(x) for x in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True), mask
