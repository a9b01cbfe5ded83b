"""How an answer that was found is held against the right ones: SQuAD's rules, and CMRC's for Chinese.

Rajpurkar et al. 2016, arXiv 1606.05250, sec. 6.1: case, punctuation and articles (a, an, the) do not count; F1 is over
words, p = common / said, r = common / right. Cui et al. 2019 (CMRC 2018), arXiv 1810.07366, sec. 4: where the right answer
is Chinese, each Han character is a word, punctuation does not count, and common is the longest run that both have. Of
several right answers the one that fits best counts; where none is right, only "" is.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

HAN = r"[\u3400-\u9fff\uf900-\ufaff]"


def best(measure: Callable[[str, str], float], said: str, right: Sequence[str] | str) -> float:
    """The best of what is measured against each right answer; none is right: 1 for ""."""
    right = (right,) if isinstance(right, str) else right
    return max((measure(said, wanted) for wanted in right), default=float(not said.strip()))


def exact(said: str, right: str) -> float:
    """1 where both are the same by the rules."""
    han = is_chinese(right)
    return float(words_of(said, han) == words_of(right, han))


def overlap(said: str, right: str) -> float:
    """F1 over words.

    >>> overlap("the Black Forest, Germany", "Black Forest"), overlap("在黑森林里", "黑森林")
    (0.8, 0.75)
    """
    han = is_chinese(right)
    a, b = words_of(said, han), words_of(right, han)
    if not a or not b:
        return float(a == b)
    common = _longest_run(a, b) if han else (Counter(a) & Counter(b)).total()
    return 2 * common / (len(a) + len(b))


def is_chinese(text: str) -> bool:
    """It holds a Han character."""
    return re.search(HAN, text) is not None


def words_of(text: str, han: bool) -> list[str]:
    """What counts of an answer.

    >>> words_of("The Cat, a dog!", False), words_of("GPT-4 模型。", True)
    (['cat', 'dog'], ['gpt4', '模', '型'])
    """
    text = text.lower()
    if han:
        kept = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
        return re.findall(rf"{HAN}|(?:(?!{HAN})\S)+", kept)
    return re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in text if c not in string.punctuation)).split()


def _longest_run(a: list[str], b: list[str]) -> int:
    return SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
