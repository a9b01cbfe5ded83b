"""Masked language modelling: an encoder learns a field's language by recovering words that were hidden from it.

Devlin et al. 2019, "BERT", arXiv 1810.04805, sec. 3.1; whole words: Cui et al. 2019, arXiv 1906.08101, sec. 2.1:

    15 % of a row's tokens M are to be recovered        loss = - sum over M of log p(x_t | the row as it is shown)

    [CLS] he  plays the  vio ##lin [SEP]
    [CLS] he  plays the [MASK][MASK][SEP]     of M: 80 % [MASK], 10 % another token by chance, 10 % as it was
                         vio ##lin            a word is hidden with all its pieces

While training the masks follow from the seed, the step and the row's tokens alone: each epoch has others, and a run that
is resumed, or parts its batches otherwise, has the same. For measuring they follow from the row alone.
A row's labels say which word each token belongs to; what is to be recovered is the token itself.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from weitiao.core.batch import IGNORE, Batch, Loss, Row, pack
from weitiao.core.errors import DataError
from weitiao.core.example import Text
from weitiao.core.hardware import needs
from weitiao.core.lm_head import CHUNK, LMHead
from weitiao.core.objective import MASKED, Objective, Preview
from weitiao.core.processor import Processor
from weitiao.core.trainable_model import TrainableModel
from weitiao.core.traits import Traits

SHOWN_MASKED, SHOWN_OTHER = 0.8, 0.9  # below the first: [MASK]; below the second: a token by chance; else as it was


class MaskedLM(Objective):
    """Recover words that were hidden from an encoder (continued pretraining)."""

    default_traits: ClassVar[Traits] = Traits(
        example_type=Text,
        dynamic_masking=True,
        splittable=True,
        generative=False,
        needs_mlm_head=True,
        overlong="sliding_window",
        overlong_reason="a long document goes on in the next row, with the special tokens around each",
        metrics=("loss", "perplexity", "masked_accuracy"),
    )

    mlm_probability: float = Field(default=0.15, gt=0, lt=1)
    """Of a row's tokens, how many are to be recovered; at least one word."""
    whole_word_mask: Literal["tokenizer", "jieba", "off"] = "tokenizer"
    """What is hidden at once: a word as the tokenizer parts text (of Chinese, a character), a word as jieba parts Chinese,
    or a single token (off)."""

    def rows(self, example: Text, processor: Processor) -> list[Row]:
        """The text between its special tokens; the labels number its words."""
        if processor.mask_id is None:
            raise DataError("objective: masked_lm hides words behind a mask token, and the base's tokenizer has none.")
        ids, words = self._in_words(example.text, processor)
        if not ids:
            raise ValueError("the text is empty")
        first, last = processor.frame.first, processor.frame.last
        labels = [*(IGNORE for _ in first), *words, *(IGNORE for _ in last)]
        return [Row(input_ids=[*first, *ids, *last], labels=labels)]

    def _in_words(self, text: str, processor: Processor) -> tuple[list[int], list[int]]:
        if self.whole_word_mask == "tokenizer":
            return processor.encode_with_word_ids(text)
        ids, places = processor.encode_with_offsets(text)
        if self.whole_word_mask == "off":
            return ids, list(range(len(ids)))
        ends = np.cumsum([len(word) for word in _jieba().cut(text)])
        return ids, np.searchsorted(ends, [begin for begin, _ in places], side="right").tolist()

    def encode_input(self, example: Text, processor: Processor) -> Row:
        """A text with [MASK] in it, to be filled."""
        ids = processor.text(example.text)
        if processor.mask_id not in ids:
            mask = (
                processor.decode([processor.mask_id], skip_special_tokens=False)
                if processor.mask_id is not None
                else "mask"
            )
            raise ValueError(f"the text has no {mask} to fill")
        return Row(input_ids=ids, labels=[IGNORE] * len(ids))

    def windows(self, row: Row, max_length: int) -> list[Row]:
        """Stretch after stretch, each between the row's special tokens; each token once."""
        ids, labels = list(row["input_ids"]), list(row["labels"])
        learnt = [i for i, label in enumerate(labels) if label != IGNORE] or [1, len(ids) - 2]  # to be filled: one each end
        begin, end = learnt[0], learnt[-1] + 1
        room = max_length - begin - (len(ids) - end)
        if room < 1:
            raise ValueError(f"a max_length of {max_length} tokens leaves no room between the special tokens")
        made: list[Row] = []
        for at in range(begin, end, room):
            cut = slice(at, min(at + room, end))
            made.append(Row(input_ids=[*ids[:begin], *ids[cut], *ids[end:]],
                            labels=[*labels[:begin], *labels[cut], *labels[end:]]))  # fmt: skip
        return made

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        """The beginning stays."""
        kept = self.windows(row, max_length)[0]
        ids, end = [int(x) for x in row["input_ids"]], len(kept["input_ids"])
        return kept, ids[end - 1 : -1]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        """Learnt is what would be hidden for measuring; each epoch hides other words."""
        hidden = {at for at, _, _ in self._drawn(pack([row]))}
        ids = [int(x) for x in row["input_ids"]]
        stretches = groupby(range(len(ids)), key=lambda t: "target" if t in hidden else "context")
        drawn = [
            (kind, processor.decode([ids[t] for t in stretch], skip_special_tokens=False)) for kind, stretch in stretches
        ]
        return [*drawn, *([("lost", processor.decode(lost, skip_special_tokens=False))] if lost else [])]

    # -- the loss -----------------------------------------------------------------------------------------------------

    def _drawn(self, batch: Batch) -> Iterator[tuple[int, float, float]]:
        """Of each token to recover: its place, and two numbers from 0 to 1 that decide what is shown in its place."""
        ids, labels = batch.input_ids.cpu().numpy(), batch.labels.cpu().numpy()
        for a, b in zip(batch.bounds, batch.bounds[1:]):
            digest = hashlib.blake2b(ids[a:b].astype(np.int64).tobytes(), digest_size=8).digest()
            random = np.random.default_rng((*batch.rng_key, int.from_bytes(digest, "big")))
            places = np.flatnonzero(labels[a:b] != IGNORE)
            words = np.split(places, np.flatnonzero(np.diff(labels[a:b][places])) + 1)
            wanted, taken = max(1, round(self.mlm_probability * len(places))), np.zeros(0, int)
            for i in random.permutation(len(words)):
                if not len(taken) or len(taken) + len(words[i]) <= wanted:
                    taken = np.concatenate([taken, words[i]])
                if len(taken) >= wanted:
                    break
            for place, chance in zip(np.sort(taken), random.random((len(taken), 2))):
                yield a + int(place), float(chance[0]), float(chance[1])

    def hide(self, model: TrainableModel, batch: Batch) -> Batch:
        """The batch as it is shown; labels are the tokens to recover."""
        drawn, device = list(self._drawn(batch)), batch.input_ids.device
        places = torch.tensor([place for place, _, _ in drawn], device=device)
        ids, labels = batch.input_ids.clone(), torch.full_like(batch.labels, IGNORE)
        labels[places] = ids[places]
        chance = torch.tensor([two for _, *two in drawn], dtype=torch.float64, device=device)  # [N, 2]
        other = (chance[:, 1] * model.model.get_input_embeddings().num_embeddings).long()
        hidden = torch.where(chance[:, 0] < SHOWN_MASKED, model.processor.mask_id or 0, other)
        ids[places] = torch.where(chance[:, 0] < SHOWN_OTHER, hidden, ids[places])
        return replace(batch, input_ids=ids, labels=labels)

    def counts(self, batch: Batch) -> dict[str, float]:
        return {self.name: float(sum(1 for _ in self._drawn(batch)))}

    def loss(self, model: TrainableModel, batch: Batch) -> Loss:
        return Loss({self.name: -self.logprobs(model, self.hide(model, batch)).sum()})

    def segment_losses(self, model: TrainableModel, batch: Batch) -> list[tuple[float, float]]:
        shown = self.hide(model, batch)
        parts = (-self.logprobs(model, shown)).split(self._many(shown))
        return [(part.sum().item(), float(len(part))) for part in parts]

    def logprobs(self, model: TrainableModel, shown: Batch) -> Tensor:
        """[N] fp32: the log-probability of every token to recover. Never [T, V]."""
        asked = shown.labels != IGNORE
        hidden = model.hidden(shown, asked.nonzero()[:, 0])
        return self._words(model).logprobs(model.heads[MASKED](hidden), shown.labels[asked])

    def _words(self, model: TrainableModel) -> LMHead:
        return LMHead(lambda: model.model.get_input_embeddings().weight, lambda: model.heads[MASKED].bias)  # pyright: ignore

    def _many(self, shown: Batch) -> list[int]:
        return [int((labels != IGNORE).sum()) for labels in shown.labels.split(list(shown.lengths))]

    # -- what it says -------------------------------------------------------------------------------------------------

    def predict(self, model: TrainableModel, batch: Batch) -> list[dict[str, Any]]:
        """Of each segment: the most probable tokens for what is hidden, how probable, and how many are right."""
        if bool((batch.labels != IGNORE).any()):
            shown = self.hide(model, batch)
            asked = shown.labels != IGNORE
        else:
            shown, asked = batch, batch.input_ids == model.processor.mask_id
        x, words = model.heads[MASKED](model.hidden(shown, asked.nonzero()[:, 0])), self._words(model)
        best = [words.logits(part).softmax(-1).max(-1) for part in x.split(CHUNK)]
        many = [int(part.sum()) for part in asked.split(list(shown.lengths))]
        tokens, sure = (torch.cat([getattr(part, key) for part in best]).split(many) for key in ("indices", "values"))
        right = (torch.cat([part.indices for part in best]) == shown.labels[asked]).split(many)
        return [
            {"filled": [model.processor.decode([token]) for token in t.tolist()], "sure": s.tolist(),
             "right": int(r.sum()), "of": len(r)}
            for t, s, r in zip(tokens, sure, right)
        ]  # fmt: skip

    def merge_windows(self, said: Sequence[dict[str, Any]], example: Text, processor: Processor) -> dict[str, Any]:
        return {key: sum((one[key] for one in said[1:]), said[0][key]) for key in said[0]}

    def to_record(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"filled": said["filled"], "probabilities": [round(p, 6) for p in said["sure"]]}

    def answer(self, said: dict[str, Any]) -> str:
        return " ".join(said["filled"])

    def metric_pair(self, said: dict[str, Any], example: Text) -> tuple[int, int]:
        return said["right"], said["of"]


@cache
def _jieba() -> Any:
    needs("jieba", "jieba", "whole_words: jieba")
    import jieba

    jieba.setLogLevel("WARNING")  # it writes to stderr how long it took to load
    return jieba
