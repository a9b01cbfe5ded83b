"""Figures of a whole corpus of written texts, by sacreBLEU, with an interval over its rows."""

from collections.abc import Sequence
from typing import Any

from weitiao.core.errors import RecipeError
from weitiao.core.score import Score, bootstrapped
from weitiao.evaluate.squad import is_chinese

DRAWS = 200  # a corpus figure is counted anew for each


def corpus_score(name: str, pairs: Sequence[tuple[Any, Any]]) -> Score:
    """BLEU or chrF of (written, reference) pairs.

    Raises:
        RecipeError: sacreBLEU is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise RecipeError(f"evaluate.metrics: {name} needs sacreBLEU: pip install 'weitiao[seq2seq]'.") from None
    chinese = any(is_chinese(str(right)) for _, right in pairs)
    counted = BLEU(tokenize="zh" if chinese else "13a") if name == "bleu" else CHRF()

    def of(some: Sequence[tuple[Any, Any]]) -> float:
        return counted.corpus_score([str(said) for said, _ in some], [[str(right) for _, right in some]]).score

    return bootstrapped(name, list(pairs), of, draws=DRAWS)
