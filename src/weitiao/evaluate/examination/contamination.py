"""Does the training data contain an exam's questions? Then its score says what was memorized.

A question is found where 13 of its units in a row, or all of a shorter question, stand in a training text: words without
case, width and punctuation; of Chinese, characters (13-grams: Brown et al. 2020, "Language Models are Few-Shot Learners",
app. C). A question that was written anew in other words is not found.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from weitiao.evaluate.examination.items import ExamItem

N = 13
MIN_UNITS = 4  # fewer than these stand in texts by chance
UNITS = re.compile(r"[\u3400-\u9fff\u3040-\u30ff]|[^\W_\u3400-\u9fff\u3040-\u30ff]+")
LABELS = {"question", "q", "answer", "a", "问", "答", "题", "目", "案"}


def contaminated_items(items: Sequence[ExamItem], texts: Iterable[str]) -> list[str]:
    """The ids of the items whose question is in a text, in the items' order."""
    searched: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for x in items:
        units = _without_labels(units_of(x.question))
        for i in range(max(1, len(units) - N + 1)):
            gram = tuple(units[i : i + N])
            if len(gram) >= MIN_UNITS:
                searched[gram[:MIN_UNITS]].append((gram, x.id))
    found: set[str] = set()
    for text in texts if searched else ():
        units = units_of(text)
        for i in range(len(units) - MIN_UNITS + 1):
            for gram, name in searched.get(tuple(units[i : i + MIN_UNITS]), ()):
                if name not in found and tuple(units[i : i + len(gram)]) == gram:
                    found.add(name)
    return [x.id for x in items if x.id in found]


def units_of(text: str) -> list[str]:
    """Words and Chinese characters, without case, width and punctuation.

    >>> units_of("Ｗhat's 北京?")
    ['what', 's', '北', '京']
    """
    return UNITS.findall(unicodedata.normalize("NFKC", text).casefold())


def _without_labels(units: list[str]) -> list[str]:
    """Without "Question:" before and "Answer:" after, which training texts need not have."""
    start, end = 0, len(units)
    while start < end and units[start] in LABELS:
        start += 1
    while end > start and units[end - 1] in LABELS:
        end -= 1
    return units[start:end]
