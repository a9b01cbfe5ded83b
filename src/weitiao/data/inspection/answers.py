"""Answers that teach something else than the task: cut off, empty of content, copies of the question, loops, refusals."""

import re
import zlib
from array import array
from collections import defaultdict
from typing import Any

import numpy as np

from weitiao.data.cleaners.as_an_ai import PHRASE
from weitiao.data.columns import NO_INPUT
from weitiao.data.inspection.occurrences import Occurrences
from weitiao.data.inspection.row_store import RowBatch
from weitiao.data.personal_data.identifier import AnyOf

SENTENCE_ENDS = frozenset("。！？!?.…;；:：\"'”’」』）)]】》}>`~*|_#=-—^♪✓✔～")
"""Characters that an answer may end with. A comma is none; nor is a letter, where other answers end properly."""
OPEN_ENDS = frozenset(",，、（(「『“《【[{")
PROSE = re.compile(r"[。！？!?]|[.](?=\s)")  # an end of a sentence inside
LIST_ITEM = re.compile(r"\s*(?:[-*•·+]|\d{1,3}[.)、]|#|\||>|[A-Za-z_]+\s*[=:(])")
ADDRESS = re.compile(r"\S*[/@]\S*$")
SHORT = 8  # characters of an answer that may be no more than a placeholder
LEAST_PROSE = 20  # characters of an answer from which a missing full stop is looked at
PROPER = 0.7  # share of such answers that end with a sign, from which the others are suspicious
SAME_LENGTH, LONG = 3, 200  # answers of exactly the longest length; characters from which that is no chance
LOOP_LENGTH, LOOP_RATIO = 200, 0.12  # characters; size after compression
PLACEHOLDERS = frozenset(
    {"nan", "null", "none", "n/a", "na", "todo", "tbd", "test", "...", "…", "-", "?", "undefined", "answer", "output",
     "无", "暂无", "空", "待补充", "测试", "略", "答案", "<nooutput>", *NO_INPUT}
)  # fmt: skip
MODEL_WORDS = AnyOf(
    "language model", " an ai", "an AI", "training data", "knowledge cut", "openai", "OpenAI", "ChatGPT", "Claude",
    "Anthropic", "trained by", "created by", "developed by", "artificial intelligence", "Artificial Intelligence",
    "人工智能", "语言模型", "AI", "智能助手", "机器人", "训练数据", "知识截", "我是",
)  # fmt: skip
REFUSAL_WORDS = AnyOf(
    "sorry", "Sorry", "apolog", "cannot", "can't", "can’t", "unable", "not able", "抱歉", "对不起", "无法", "不能", "不便"
)
SORRY = r"(?:i['’]?m|i am|we are|we['’]re)? ?(?:really |very |so |truly )?(?:sorry|afraid)\b|(?:my )?apolog(?:ies|ize|y)"
CANNOT = r"can(?:no|['’]?)t|unable|not able|won['’]t|not comfortable|do(?:es)? ?n['’o]?t? have"
REFUSAL = re.compile(
    rf"^\W*(?:{SORRY}|i apologi[sz]e|unfortunately,? i|as an ai\b)[^.!\n]{{0,80}}?(?:{CANNOT})"
    r"|^\W*i (?:can(?:no|['’]?)t|am unable to|am not able to|won['’]t be able to) "
    r"(?:help|assist|provide|fulfil|answer|do that|comply|engage|create|discuss|generate|offer)"
    r"|^\W*(?:很|非常|十分)?(?:抱歉|对不起|不好意思|遗憾)[，,。！! ]{0,2}[^。！\n]{0,24}"
    r"(?:无法|不能|不可以|没有办法|没办法|不便|不会|难以)"
    r"|^\W*我(?:无法|不能)(?:提供|回答|帮助|协助|满足|为您|为你|完成|生成)",
    re.IGNORECASE,
)
NEXT_TURN = re.compile(r"\n\s*(?:Human|User|Assistant|Question|用户|人类|助手|问题?|客户)\s*[:：]", re.IGNORECASE)
KINDS = ("cut", "no_words", "placeholder", "copy", "loop", "refusal", "other_model", "next_turn")


class OddAnswers:
    """Rows whose answers look wrong, by kind."""

    def __init__(self) -> None:
        self._found: dict[str, Occurrences] = defaultdict(Occurrences)
        self._open_ends = array("q")  # rows whose answer ends with a comma, inside brackets, or inside a code block
        self._without_sign = array("q")  # rows of prose that end with a letter
        self._prose, self._n = 0, 0
        self._lengths = array("i")  # of answers that do not end with a sign; of others 0
        self._longest = 0

    def add(self, batch: RowBatch) -> None:
        """Look through a batch."""
        for i, x in enumerate(batch.rows):
            if not x.answer:
                self._lengths.append(0)
                continue
            self._n += 1
            row, answer = batch.first + i, x.answer.strip()
            is_loop = len(answer) >= LOOP_LENGTH and _is_loop(answer)
            self._lengths.append(0 if is_loop or answer[-1:] in SENTENCE_ENDS else len(answer))
            self._longest = max(self._longest, len(answer))
            if is_loop:
                self._found["loop"].add(row)
            elif len(answer) <= SHORT:
                self._look_at_short(row, answer)
            else:
                self._look_at_end(row, answer)
            if answer == x.prompt.strip():
                self._found["copy"].add(row)
            head = answer[:160]
            if REFUSAL_WORDS.search(head) and REFUSAL.search(head):
                self._found["refusal"].add(row)
            if MODEL_WORDS.search(head) and PHRASE.search(answer[:400]):
                self._found["other_model"].add(row)
            if "\n" in answer and NEXT_TURN.search(answer):
                self._found["next_turn"].add(row)

    def _look_at_short(self, row: int, answer: str) -> None:
        if answer.casefold() in PLACEHOLDERS:
            self._found["placeholder"].add(row)
        elif not any(map(str.isalnum, answer)):
            self._found["no_words"].add(row)

    def _look_at_end(self, row: int, answer: str) -> None:
        if answer[-1] in OPEN_ENDS or (answer.count("```") % 2 and "```" in answer):
            self._prose += 1
            self._open_ends.append(row)
            return
        if len(answer) < LEAST_PROSE:
            return
        if not PROSE.search(answer, 0, len(answer) - 1) and answer[-1] not in SENTENCE_ENDS:
            return
        last_line = answer[answer.rfind("\n") + 1 :]
        if answer[-1] in SENTENCE_ENDS or not answer[-1].isalpha():  # emoji, and numbers: The answer is 42
            self._prose += 1
        elif not LIST_ITEM.match(last_line) and not ADDRESS.search(last_line):
            self._prose += 1
            self._without_sign.append(row)

    def result(self) -> dict[str, Any]:
        """{n, KIND: Occurrences, same_length: {characters, rows}, prose: answers whose end was looked at}."""
        lengths = np.frombuffer(self._lengths, np.int32) if self._lengths else np.zeros(0, np.int32)
        suspicious = len(self._without_sign) <= (1 - PROPER) * self._prose
        cut = sorted([*self._open_ends, *(self._without_sign if suspicious else ())])
        longest = self._longest
        at_longest = np.flatnonzero(lengths == longest) if longest >= LONG else np.zeros(0, np.int64)
        if len(at_longest) >= SAME_LENGTH:
            cut = sorted({*cut, *at_longest.tolist()})
        self._found["cut"] = Occurrences.of(cut)
        same = {"characters": longest, "rows": len(at_longest)} if len(at_longest) >= SAME_LENGTH else None
        kinds = {kind: self._found.get(kind, Occurrences()) for kind in KINDS}
        return {"n": self._n, "prose": self._prose, "same_length": same, **kinds}


def _is_loop(text: str) -> bool:
    """One phrase again and again: it compresses to nearly nothing."""
    raw = text.encode()
    return len(zlib.compress(raw, 1)) < LOOP_RATIO * len(raw)
