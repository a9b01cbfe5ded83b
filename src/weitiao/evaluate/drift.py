"""Drift: how far the model has moved from its base on text unrelated to the task.

    KL(base || model) per token = sum over the vocabulary of p_base (log p_base - log p_model), in nats; 0: the base itself

Measured at every validation, so that forgetting shows while it happens.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from weitiao.core.batch import IGNORE, Batch, pack
from weitiao.core.lm_head import MAX_LOGITS
from weitiao.core.score import Score, ratio_of_sums
from weitiao.core.trainable_model import TrainableModel, as_base_model, evaluating

MAX_LENGTH = 48  # tokens per text; the base's log-probabilities [tokens, V] stay in memory in half precision


class Drift:
    """Created while the model still equals the base model; each call measures the KL from it."""

    def __init__(self, model: TrainableModel) -> None:
        texts = (Path(__file__).parent / "neutral.txt").read_text(encoding="utf-8").splitlines()
        ids = [model.processor.text(text)[:MAX_LENGTH] for text in texts]
        self.batch: Batch = pack([{"input_ids": x, "labels": [IGNORE] * len(x)} for x in ids if x]).to(model.device)
        with as_base_model(model) as base:
            self.base = [part.half() for part in self._logprobs(base)]  # [T, V]

    def __call__(self, model: TrainableModel) -> Score:
        """KL from the base in nats per token, with a bootstrap interval over the texts."""
        pairs = ((stored.float(), current) for stored, current in zip(self.base, self._logprobs(model)))
        divergences = [(base.exp() * (base - current)).sum(-1).clamp(min=0) for base, current in pairs]
        sums = [float(part.sum()) for part in torch.cat(divergences).split(list(self.batch.lengths))]  # [T] in total
        return ratio_of_sums("drift", sums, list(self.batch.lengths))

    def _logprobs(self, model: TrainableModel) -> Iterator[Tensor]:
        """[T, V] in fp32, a few tokens at a time: with a vocabulary of 262k, all at once would take gigabytes."""
        with evaluating(model), torch.no_grad():
            for part in model.hidden(self.batch).split(max(1, MAX_LOGITS // len(model.lm_head.weight()))):
                yield model.lm_head.logits(part).log_softmax(-1)
