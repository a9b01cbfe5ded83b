"""BLEU: how many runs of one to four words are the reference's; over the whole corpus.

Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation", sec. 2.3, as sacreBLEU counts it
(Post 2018, arXiv 1804.08771); where a reference holds Han characters, by its Chinese tokenizer. From 0 to 100.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric
from weitiao.core.score import Score
from weitiao.evaluate.sacrebleu_score import corpus_score


class BLEU(Metric):
    """BLEU over all rows, by sacreBLEU."""

    reads: ClassVar[str] = "answers"

    def score(self, pairs: list[tuple[Any, Any]]) -> Score:
        """(written, reference) of each row."""
        return corpus_score(self.name, pairs)
