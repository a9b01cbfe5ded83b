"""BLEU: precision of n-grams of one to four words, over the whole corpus.

Papineni et al. 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation", sec. 2.3, by
sacreBLEU (Post 2018, arXiv 1804.08771); with its Chinese tokenizer where a reference has Han characters. Range 0 to 100.
"""

from typing import Any, ClassVar

from weitiao.core.metric import Metric, Reads
from weitiao.core.score import Clusters, Score
from weitiao.evaluate.sacrebleu_score import corpus_score


class BLEU(Metric):
    """BLEU over all rows, by sacreBLEU."""

    reads: ClassVar[Reads] = "answers"

    def score(self, pairs: list[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
        """(generated, reference) of each row."""
        return corpus_score(self.name, pairs, clusters)
