"""Drift: how far the model has moved from its base on text that has nothing to do with the task.

    KL(base || now) a token = sum over words of p_base (log p_base - log p_now), in nats; 0 is the base model itself

Seen at every validation, so that forgetting shows while it happens, and not only in an exam at the end.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from weitiao.core.batch import IGNORE, Batch, pack
from weitiao.core.lm_head import LOGITS
from weitiao.core.score import Score, ratio_of_sums
from weitiao.core.trainable_model import TrainableModel

LONGEST = 48  # tokens of each text: what the base says of them is kept, [tokens, V] in half precision


class Drift:
    """Made while the model still is the base model; called whenever one wants to know."""

    def __init__(self, model: TrainableModel) -> None:
        texts = (Path(__file__).parent / "neutral.txt").read_text(encoding="utf-8").splitlines()
        ids = [model.processor.text(text)[:LONGEST] for text in texts]
        self.batch: Batch = pack([{"input_ids": x, "labels": [IGNORE] * len(x)} for x in ids if x]).to(model.device)
        with model.as_base_model() as base:
            self.base = [part.half() for part in self._logprobs(base)]  # [T, V]

    def __call__(self, model: TrainableModel) -> Score:
        """KL from the base in nats a token, with a bootstrap over the texts."""
        both = ((kept.float(), now) for kept, now in zip(self.base, self._logprobs(model)))
        each = [(base.exp() * (base - now)).sum(-1).clamp(min=0) for base, now in both]
        sums = [float(part.sum()) for part in torch.cat(each).split(list(self.batch.lengths))]  # [T] in all
        return ratio_of_sums("drift", sums, list(self.batch.lengths))

    def _logprobs(self, model: TrainableModel) -> Iterator[Tensor]:
        """[T, V] in fp32, some tokens at a time: of 262k words all at once would be gigabytes."""
        with model.evaluating(), torch.no_grad():
            for part in model.hidden(self.batch).split(max(1, LOGITS // len(model.required_lm_head.weight()))):
                yield model.required_lm_head.logits(part).log_softmax(-1)
