"""A conversation as exchanges: a user's turn with all that follows it up to the next one.

    0 user: Hi        1 user: My order is 8841.      2 user: And the weather?             3 user: Thanks!
      assistant: ...    assistant: Noted.              assistant: calls weather()           assistant: You're welcome.
                                                       tool: sunny
                                                       assistant: It is sunny.

A call and its result are always in one exchange. System messages belong to none of them: they are kept whatever is dropped.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise

from weitiao.core.example import Turn, plain

Unit = tuple[int, ...]
"""Indices of turns that are kept or dropped together."""
MAX_FILLER_ANSWER = 60  # columns of an assistant's turn that answers a filler: "You're welcome! Anything else?"
MAX_CACHED = 2000  # characters of a text whose n-grams are kept in memory
MARKS = re.compile(r"[\s,.!?;:~…，。！？；：、～—’'\"“”()（）\U0001f300-\U0001faff\u2600-\u27bf\ufe0f-]+")
PHRASES = (
    "嗯|哦|噢|喔|呃|额|唔|啊|哈|嘿|好|好的|好滴|好吧|好呀|好嘞|好咧|好啦|知道了|明白|明白了|了解|了解了|懂了|收到|谢谢|谢谢你|谢谢您|谢谢啦"
    "|谢谢了|谢了|多谢|感谢|感谢你|感谢您|非常感谢|辛苦|辛苦了|没事|没事了|不客气|再见|拜拜|太好了|真好|不错"
    "|ok|okay|thanks|thank you|thx|so much|very much|a lot|again|cheers|great|cool|nice|awesome|perfect|wonderful|got it"
    "|gotcha|i see|alright|all right|understood|sounds good|good to know|makes sense|no problem|you re welcome|uh|um|hm|oh"
    "|ah|wow|lol|ha|bye|goodbye|see you|good night|then|well"
)
REPEATED = re.compile(r"(.)\1+")  # 嗯嗯嗯, hmmm; the phrases are written alike
QUESTION = re.compile(r"[?？]\s*\Z|吗[。.]?\s*\Z")
WORDS = re.compile(
    r"[a-z0-9à-öø-ɏͰ-ӿ]+(?:[-'.@_/][a-z0-9à-öø-ɏͰ-ӿ]+)*|[\u2e80-\u9fff\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003347f]+"
)
WIDE = re.compile(r"[\u2e80-\uffef\U00020000-\U0003347f]")


def exchanges(turns: Sequence[Turn]) -> list[Unit]:
    """The exchanges of a conversation, in order; an assistant that speaks first begins one of its own.

    Several turns of the user in a row begin one exchange together. Where a user speaks between a call and its result, both
    parts are one exchange.
    """
    units: list[list[int]] = []
    before = ""
    for i, turn in enumerate(turns):
        if turn.role == "system":
            continue
        if not units or (turn.role == "user" and before != "user"):
            units.append([])
        units[-1].append(i)
        before = turn.role
    return _with_calls_whole(turns, units)


def steps(turns: Sequence[Turn], exchange: Unit) -> tuple[Unit, list[Unit]]:
    """An exchange as its question and its steps: an assistant's turn with the results of what it calls.

    Returns:
        (the user's turns before the first step, the steps); a turn of the user among them begins a step, too.
    """
    question: list[int] = []
    units: list[list[int]] = []
    for i in exchange:
        if not units and turns[i].role == "user":
            question.append(i)
        elif not units or turns[i].role != "tool":
            units.append([i])
        else:
            units[-1].append(i)
    return tuple(question), _with_calls_whole(turns, units)


def _with_calls_whole(turns: Sequence[Turn], units: Sequence[Sequence[int]]) -> list[Unit]:
    """The units, with those joined over which a call and its result are spread."""
    unit_of = {i: k for k, unit in enumerate(units) for i in unit}
    pairs = [(unit_of[a], unit_of[b]) for a, b in _pairs(turns) if a in unit_of and b in unit_of]
    follows_call = {k for first, last in pairs for k in range(first + 1, last + 1)}
    whole: list[Unit] = []
    for k, unit in enumerate(units):
        whole = [*whole[:-1], (*whole[-1], *unit)] if k in follows_call else [*whole, tuple(unit)]
    return whole


def _pairs(turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """(turn that calls, turn with a result of it): by the call's id, or the last turn before it that calls."""
    pairs: list[tuple[int, int]] = []
    by_id: dict[str, int] = {}
    last = None
    for i, turn in enumerate(turns):
        if turn.tool_calls:
            last = i
            by_id |= {call.id: i for call in turn.tool_calls if call.id}
        elif turn.role == "tool":
            call = by_id.get(turn.tool_call_id, last)
            pairs += [] if call is None else [(call, i)]
    return pairs


# -- fillers ----------------------------------------------------------------------------------------------------------


def is_filler(text: str) -> bool:
    """Whether a user's turn only acknowledges: 嗯, 好的谢谢, OK thanks!

    >>> is_filler("好的，谢谢！"), is_filler("OK, thanks."), is_filler("好的，那帮我改到周三"), is_filler("42")
    (True, True, False, False)
    """
    return len(text) <= MAX_FILLER_ANSWER and bool(_fillers().fullmatch(MARKS.sub(" ", _once(plain(text))).strip()))


@cache
def _fillers() -> re.Pattern[str]:
    """Phrases one after another. No phrase is made of others, so that there is one way to read a text."""
    phrases = sorted((re.escape(_once(x)) for x in PHRASES.split("|")), key=len, reverse=True)
    return re.compile(f"(?:(?:{'|'.join(phrases)}) ?)+")


def _once(text: str) -> str:
    return REPEATED.sub(r"\1", text)


def filler_exchanges(turns: Sequence[Turn], units: Sequence[Unit]) -> set[int]:
    """Exchanges in which nothing is said: the user acknowledges, and the answer is short, without digits and calls.

    Not where the assistant had asked something: an OK to "Shall I book it?" is an answer.
    """
    fillers: set[int] = set()
    asked = False
    for k, unit in enumerate(units):
        own = [turns[i] for i in unit]
        users, others = [x for x in own if x.role == "user"], [x for x in own if x.role != "user"]
        if users and not asked and all(is_filler(x.text) for x in users) and all(map(_says_nothing, others)):
            fillers.add(k)
        if others:
            asked = bool(QUESTION.search(others[-1].text))
    return fillers


def _says_nothing(turn: Turn) -> bool:
    width = len(turn.text) + len(WIDE.findall(turn.text))
    return (
        turn.role == "assistant" and not turn.tool_calls and width <= MAX_FILLER_ANSWER and not re.search(r"\d", turn.text)
    )


# -- what an exchange has in common with an answer ----------------------------------------------------------------------


def ngrams(text: str) -> frozenset[str]:
    """What texts are compared by: words, and of Han characters (kana, hangul) each two that stand together.

    >>> sorted(ngrams("Order 88-41, 上海的酒店"))
    ['88-41', 'order', '上海', '海的', '的酒', '酒店']
    """
    return _ngrams_again(text) if len(text) <= MAX_CACHED else _ngrams(text)


def _ngrams(text: str) -> frozenset[str]:
    grams: set[str] = set()
    for match in WORDS.findall(plain(text)):
        if WIDE.match(match):
            grams |= {a + b for a, b in pairwise(match)} if len(match) > 1 else {match}
        else:
            grams.add(match)
    return frozenset(grams)


_ngrams_again = lru_cache(maxsize=1024)(_ngrams)  # a conversation is looked at for each of its rows
