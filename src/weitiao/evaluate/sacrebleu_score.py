"""Corpus-level BLEU and chrF by sacreBLEU, with a bootstrap interval over rows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.score import Clusters, Score, bootstrapped
from weitiao.evaluate.squad import is_chinese

DRAWS = 200  # bootstrap draws; each one scores a whole corpus


def corpus_score(name: str, pairs: Sequence[tuple[Any, Any]], clusters: Clusters = ()) -> Score:
    """BLEU or chrF of (generated, reference) pairs.

    Raises:
        RecipeError: sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise RecipeError(
            "evaluate.metrics: {metric} needs sacreBLEU. Install it with: pip install 'weitiao[seq2seq]'", metric=name
        ) from None
    chinese = any(is_chinese(str(reference)) for _, reference in pairs)
    tokenizer = "zh" if chinese else "13a"
    scorer = BLEU(tokenize=tokenizer) if name == "bleu" else CHRF()

    def score_rows(rows: Sequence[tuple[Any, Any]]) -> float:
        return scorer.corpus_score([str(text) for text, _ in rows], [[str(reference) for _, reference in rows]]).score

    score = bootstrapped(name, list(pairs), score_rows, draws=DRAWS, clusters=clusters)
    if name != "bleu" or not score.n:
        return score
    template = Message(
        "bleu: words by sacreBLEU's tokenizer {tokenizer}, chosen by the references' script", tokenizer=tokenizer
    )
    return replace(score, notes=(template,))
