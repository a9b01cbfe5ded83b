"""Masked language modelling: an encoder learns a domain's language by recovering masked words.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 3.1; whole words: Cui et al. 2019, arXiv 1906.08101, sec. 2.1:

    15 % of a row's tokens, M, are masked        loss = - sum over M of log p(x_t | the masked row)

    [CLS] he  plays the  vio ##lin [SEP]
    [CLS] he  plays the [MASK][MASK][SEP]     of M: 80 % [MASK], 10 % a random token, 10 % unchanged
                         vio ##lin            a word is masked with all its tokens

During training the masks follow from the seed, the step and the row's tokens alone: each epoch has others, and a run that
is resumed, or whose batches are split differently, has the same. During evaluation they follow from the row alone.
A row's labels are its tokens; which of them are masked, and so carry loss, is drawn at each step.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from weitiao.core.batch import IGNORE, AnnotatedRow, Batch, Loss, Row, pack, take_tokens
from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Text
from weitiao.core.hardware import needs
from weitiao.core.lm_head import CHUNK, LMHead
from weitiao.core.messages import Message
from weitiao.core.objective import MASKED, Objective, Preview
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits
from weitiao.objective.preview import preview_lost

WORD_ID = "word_id"  # the token target: which word of the text a token belongs to
MASK_BELOW, RANDOM_BELOW = 0.8, 0.9  # a draw below the first: [MASK]; below the second: a random token; else unchanged


@dataclass(frozen=True)
class Filled:
    """The most probable tokens for a row's masks."""

    tokens: list[str]
    probabilities: list[float]
    num_right: int = 0

    def __str__(self) -> str:
        return " ".join(self.tokens)


class MaskedLM(Objective):
    """Recover masked words with an encoder (continued pretraining)."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Text,
        generative=False,
        needs_mlm_head=True,
        dynamic_masking=True,
        splittable=True,
        overlong="sliding_window",
        overlong_reason=Message("a long document continues in the next row, with special tokens around each"),
        metrics=("loss", "perplexity", "masked_accuracy"),
    )

    mlm_probability: float = Field(default=0.15, gt=0, lt=1)
    """Fraction of tokens to mask; at least one word."""
    whole_word_mask: Literal["tokenizer", "jieba", "off"] = "tokenizer"
    """What is masked at once: a word as the tokenizer splits text (in Chinese, a character), a word as jieba splits
    Chinese, or a single token (off)."""

    def plain_form(self, kind: str) -> PlainForm:
        """The family's own head."""
        return PlainForm("masked_lm")

    # -- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, example: Text, processor: Processor) -> list[Row]:
        """The text between its special tokens, which are never masked."""
        if processor.mask_id is None:
            raise DataError("objective: masked_lm needs a mask token, but the base's tokenizer has none")
        ids, word_ids = self._encode_words(example.text, processor)
        if not ids:
            raise InvalidValue("the text is empty")
        first, last = processor.special_tokens.first, processor.special_tokens.last
        return [
            AnnotatedRow(
                input_ids=[*first, *ids, *last],
                labels=[*[IGNORE] * len(first), *ids, *[IGNORE] * len(last)],
                token_targets={WORD_ID: [*[0] * len(first), *word_ids, *[0] * len(last)]},
            )
        ]

    def _encode_words(self, text: str, processor: Processor) -> tuple[list[int], list[int]]:
        """The token ids, and the word that each token belongs to."""
        if self.whole_word_mask == "tokenizer":
            return processor.encode_with_word_ids(text)
        ids, offsets = processor.encode_with_offsets(text)
        if self.whole_word_mask == "off":
            return ids, list(range(len(ids)))
        ends = np.cumsum([len(word) for word in _jieba().cut(text)])
        return ids, np.searchsorted(ends, [start for start, _ in offsets], side="right").tolist()

    def encode_input(self, example: Text, processor: Processor) -> Row:
        """A text with [MASK] in it, to be filled."""
        ids = processor.text(example.text, masks=True)
        if processor.mask_id is None:
            raise InvalidValue("the base's tokenizer has no mask token")
        if processor.mask_id not in ids:
            mask = processor.decode([processor.mask_id], skip_special_tokens=False)
            raise InvalidValue("the text has no {mask} to fill", mask=mask)
        return Row(input_ids=ids, labels=[IGNORE] * len(ids))

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """Consecutive windows, each between the row's special tokens; each token is in one of them."""
        length = len(row["input_ids"])
        text = [t for t, label in enumerate(row["labels"]) if label != IGNORE]
        start, end = (text[0], text[-1] + 1) if text else (1, length - 1)  # at inference: one special token at each end
        size = max_length - start - (length - end)
        if size < 1:
            raise InvalidValue("max_length {max_length} leaves no room between the special tokens", max_length=max_length)
        return [
            take_tokens(row, [*range(start), *range(t, min(t + size, end)), *range(end, length)])
            for t in range(start, end, size)
        ]

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The first window."""
        short = self.windows(row, max_length)[0]
        return short, [int(x) for x in row["input_ids"][len(short["input_ids"]) - 1 : -1]]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """The target is what evaluation would mask; each epoch masks other words."""
        masked = {position for position, _, _ in self._draw_masks(pack([row]))}
        ids = [int(x) for x in row["input_ids"]]
        stretches = groupby(range(len(ids)), key=lambda t: "target" if t in masked else "context")
        preview = [(kind, processor.decode([ids[t] for t in ts], skip_special_tokens=False)) for kind, ts in stretches]
        return [*preview, *preview_lost(lost, processor)]

    # -- loss ---------------------------------------------------------------------------------------------------------

    def _draw_masks(self, batch: Batch) -> Iterator[tuple[int, float, float]]:
        """For each masked token: its position, and two numbers from 0 to 1 that decide what replaces it."""
        ids, labels = batch.input_ids.cpu().numpy(), batch.labels.cpu().numpy()
        word_ids = batch.token_targets[WORD_ID].cpu().numpy()
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            digest = hashlib.blake2b(ids[a:b].astype(np.int64).tobytes(), digest_size=8).digest()
            random = np.random.default_rng((*batch.rng_key, int.from_bytes(digest, "big")))
            positions = np.flatnonzero(labels[a:b] != IGNORE)
            by_word = np.split(positions, np.flatnonzero(np.diff(word_ids[a:b][positions])) + 1)
            budget, masked = max(1, round(self.mlm_probability * len(positions))), np.zeros(0, int)
            for i in random.permutation(len(by_word)):
                if not len(masked) or len(masked) + len(by_word[i]) <= budget:
                    masked = np.concatenate([masked, by_word[i]])
                if len(masked) >= budget:
                    break
            for position, draws in zip(np.sort(masked), random.random((len(masked), 2))):
                yield a + int(position), float(draws[0]), float(draws[1])

    def mask(self, model: TrainableModel, batch: Batch) -> Batch:
        """The batch with masked tokens replaced; only they keep their labels."""
        masks, device = list(self._draw_masks(batch)), batch.input_ids.device
        positions = torch.tensor([position for position, _, _ in masks], device=device)
        ids, labels = batch.input_ids.clone(), torch.full_like(batch.labels, IGNORE)
        labels[positions] = ids[positions]
        draws = torch.tensor([two for _, *two in masks], dtype=torch.float64, device=device)  # [N, 2]
        random_ids = (draws[:, 1] * _embedding(model).num_embeddings).long()
        replaced = torch.where(draws[:, 0] < MASK_BELOW, model.processor.mask_id or 0, random_ids)
        ids[positions] = torch.where(draws[:, 0] < RANDOM_BELOW, replaced, ids[positions])
        return replace(batch, input_ids=ids, labels=labels)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(sum(1 for _ in self._draw_masks(batch)))}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        return Loss({self.name: -self.logprobs(model, self.mask(model, batch)).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        masked = self.mask(model, batch)
        losses = (-self.logprobs(model, masked)).split(_supervised(masked))
        return [(x.sum().item(), float(len(x))) for x in losses]

    def logprobs(self, model: TrainableModel, masked: Batch) -> Tensor:
        """[N] fp32: the log-probability of every masked token. Never [T, V]."""
        supervised = masked.labels != IGNORE
        hidden = model.hidden(masked, supervised.nonzero()[:, 0])
        return _mlm_head(model).logprobs(model.heads[MASKED](hidden), masked.labels[supervised])

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[Filled]:
        """For each segment the most probable token of each mask: of the text's own masks, or else of those drawn."""
        own_masks = WORD_ID not in batch.token_targets
        masked = batch if own_masks else self.mask(model, batch)
        selected = batch.input_ids == model.processor.mask_id if own_masks else masked.labels != IGNORE
        hidden, head = model.heads[MASKED](model.hidden(masked, selected.nonzero()[:, 0])), _mlm_head(model)
        best = [head.logits(x).softmax(-1).max(-1) for x in hidden.split(CHUNK)]
        counts = [int(x.sum()) for x in selected.split(list(masked.lengths))]
        tokens, probabilities = torch.cat([x.indices for x in best]), torch.cat([x.values for x in best])
        right = (tokens == masked.labels[selected]).split(counts)
        return [
            Filled([model.processor.decode([token]) for token in t.tolist()], p.tolist(), int(r.sum()))
            for t, p, r in zip(tokens.split(counts), probabilities.split(counts), right)
        ]

    def merge_windows(self, predictions: Sequence[Filled], example: Text, processor: Processor) -> Filled:
        return Filled(
            [token for x in predictions for token in x.tokens],
            [p for x in predictions for p in x.probabilities],
            sum(x.num_right for x in predictions),
        )

    def to_record(self, prediction: Filled) -> dict[str, Any]:
        return {"filled": prediction.tokens, "probabilities": [round(p, 6) for p in prediction.probabilities]}

    def metric_pair(self, prediction: Filled, example: Text) -> tuple[int, int]:
        """(right tokens, masked tokens)."""
        return prediction.num_right, len(prediction.tokens)


def _supervised(batch: Batch) -> list[int]:
    """[B]: how many tokens of each segment carry loss."""
    return [int((labels != IGNORE).sum()) for labels in batch.labels.split(list(batch.lengths))]


def _embedding(model: TrainableModel) -> nn.Embedding:
    return cast(nn.Embedding, model.model.get_input_embeddings())


def _mlm_head(model: TrainableModel) -> LMHead:
    """Transformed hidden states -> log-probabilities, by the token embedding and the MLM head's bias."""
    return LMHead(lambda: _embedding(model).weight, lambda: model.heads[MASKED].bias)  # pyright: ignore[reportArgumentType]


@cache
def _jieba() -> Any:
    needs("jieba", "jieba", "whole_word_mask: jieba")
    import jieba

    jieba.setLogLevel("WARNING")  # it writes to stderr how long it took to load
    return jieba
