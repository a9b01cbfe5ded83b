"""How an extracted answer is compared with the references: SQuAD's rules, and CMRC's for Chinese.

Rajpurkar et al. 2016, arXiv 1606.05250, sec. 6.1: case, punctuation and articles (a, an, the) are ignored; F1 is over
words, p = common / predicted, r = common / reference. Cui et al. 2019 (CMRC 2018), arXiv 1810.07366, sec. 4: where the
reference is Chinese, each Han character is a word, punctuation is ignored, and `common` is the longest common substring.
With several references the best match counts; without any, only "" is correct.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

HAN = r"[\u3400-\u9fff\uf900-\ufaff]"


def best_match(measure: Callable[[str, str], float], predicted: str, references: Sequence[str] | str) -> float:
    """The highest score against any reference. References without a word are left out; where none is left, the question
    has no answer, and "" is right (as in the official script of SQuAD 2.0)."""
    references = (references,) if isinstance(references, str) else references
    with_words = [x for x in references if normalize_answer(x, is_chinese(x))]
    return max(measure(predicted, reference) for reference in with_words or [""])


def exact_match(predicted: str, reference: str) -> float:
    """1 where both are equal after normalisation."""
    chinese = is_chinese(reference)
    return float(normalize_answer(predicted, chinese) == normalize_answer(reference, chinese))


def word_f1(predicted: str, reference: str) -> float:
    """F1 over words.

    >>> word_f1("the Black Forest, Germany", "Black Forest"), word_f1("在黑森林里", "黑森林")
    (0.8, 0.75)
    """
    chinese = is_chinese(reference)
    a, b = normalize_answer(predicted, chinese), normalize_answer(reference, chinese)
    if not a or not b:
        return float(a == b)
    common = _longest_common_run(a, b) if chinese else (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b))


def is_chinese(text: str) -> bool:
    """The text contains a Han character."""
    return re.search(HAN, text) is not None


def normalize_answer(text: str, chinese: bool) -> list[str]:
    """The words of an answer that are compared.

    >>> normalize_answer("The Cat, a dog!", False), normalize_answer("GPT-4 模型。", True)
    (['cat', 'dog'], ['gpt4', '模', '型'])
    """
    text = text.lower()
    if chinese:
        text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
        return re.findall(rf"{HAN}|(?:(?!{HAN})\S)+", text)
    return re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in text if c not in string.punctuation)).split()


def _longest_common_run(a: list[str], b: list[str]) -> int:
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
