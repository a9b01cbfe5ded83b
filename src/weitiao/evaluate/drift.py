"""Drift: how far the model has moved from its base on text that has nothing to do with the task.

    KL(base || now) a token = sum over words of p_base (log p_base - log p_now), in nats; 0 is the base model itself

Seen at every validation, so that forgetting shows while it happens, and not only in an exam at the end.
"""

from pathlib import Path

import torch

from weitiao.core.batch import IGNORE, Batch, pack
from weitiao.core.score import Score, ratio_of_sums
from weitiao.core.tunable import TunableModel

LONGEST = 48  # tokens of each text: what the base says of them is kept, [tokens, V] in half precision


class Drift:
    """Made while the model still is the base model; called whenever one wants to know."""

    def __init__(self, model: TunableModel) -> None:
        texts = (Path(__file__).parent / "neutral.txt").read_text(encoding="utf-8").splitlines()
        ids = [model.processor.text(text)[:LONGEST] for text in texts]
        self.batch: Batch = pack([{"input_ids": x, "labels": [IGNORE] * len(x)} for x in ids if x]).to(model.device)
        with model.before_training() as base:
            self.base = self._logprobs(base).half()  # [T, V]

    def __call__(self, model: TunableModel) -> Score:
        """KL from the base in nats a token, with a bootstrap over the texts."""
        base = self.base.float()
        each = (base.exp() * (base - self._logprobs(model))).sum(-1).clamp(min=0)  # [T]
        sums = [float(part.sum()) for part in each.split(list(self.batch.lengths))]
        return ratio_of_sums("drift", sums, list(self.batch.lengths))

    def _logprobs(self, model: TunableModel) -> torch.Tensor:
        with model.evaluating(), torch.no_grad():
            return model.logits(self.batch).log_softmax(-1)
