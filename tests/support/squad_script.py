"""The rules of SQuAD 2.0's official evaluation script (Rajpurkar et al. 2018), written down as it computes them."""

import collections
import re
import string


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    text = "".join(x for x in text.lower() if x not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split())


def exact(gold: str, predicted: str) -> int:
    return int(normalize(gold) == normalize(predicted))


def f1(gold: str, predicted: str) -> float:
    """F1 over words."""
    gold_words, predicted_words = normalize(gold).split(), normalize(predicted).split()
    common = collections.Counter(gold_words) & collections.Counter(predicted_words)
    same = sum(common.values())
    if not gold_words or not predicted_words:
        return int(gold_words == predicted_words)
    if same == 0:
        return 0
    precision, recall = same / len(predicted_words), same / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def raw_scores(golds: list[list[str]], predictions: list[str]) -> tuple[float, float]:
    """(exact, F1) over all questions, as fractions."""
    exacts, f1s = [], []
    for answers, predicted in zip(golds, predictions):
        with_words = [x for x in answers if normalize(x)] or [""]
        exacts.append(max(exact(x, predicted) for x in with_words))
        f1s.append(max(f1(x, predicted) for x in with_words))
    return sum(exacts) / len(exacts), sum(f1s) / len(f1s)
