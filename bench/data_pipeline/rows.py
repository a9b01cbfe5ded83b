"""Files to read: conversations of a question and an answer, or texts with a class; sentences of Python's own docstrings."""

import json
import random
import re
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from bench.shared.docstring_rows import function_pairs

QUESTION, ANSWER = 90, 165  # characters, on average: a line of a conversation has about 345 bytes
CHINESE_SHARE = 0.1  # of the conversations begin with a Chinese sentence
CHINESE = (
    "请解释下面这段文字的意思。",
    "用简单的话总结一下：",
    "把这句话翻译成中文：",
    "下面的说法对吗？为什么？",
    "请给出一个例子：",
)
CLASSES = ("billing", "delivery", "account", "returns", "other")
WORDS = re.compile(r"\s+")


@cache
def sentences() -> list[str]:
    """Sentences of the docstrings of the running Python's standard library, 20 to 200 characters."""
    texts = (WORDS.sub(" ", docstring) for _, docstring in function_pairs(Path(sysconfig.get_path("stdlib"))))
    parts = {sentence.strip() + "." for text in texts for sentence in text.split(". ")}
    return sorted(x for x in parts if 20 <= len(x) <= 200)


def text(chance: random.Random, length: int) -> str:
    """Sentences of about this many characters together."""
    goal, chosen = chance.randint(length // 2, length * 3 // 2), ""
    while len(chosen) < goal:
        chosen += chance.choice(sentences()) + " "
    return chosen[:goal].strip()


def chat(chance: random.Random) -> dict[str, Any]:
    opening = chance.choice(CHINESE) if chance.random() < CHINESE_SHARE else ""
    question = {"role": "user", "content": opening + text(chance, QUESTION)}
    return {"messages": [question, {"role": "assistant", "content": text(chance, ANSWER)}]}


def labelled(chance: random.Random) -> dict[str, Any]:
    return {"text": text(chance, QUESTION + ANSWER), "label": chance.choice(CLASSES)}


KINDS: dict[str, Callable[[random.Random], dict[str, Any]]] = {"sft": chat, "classification": labelled}


def write(file: Path, objective: str, count: int) -> int:
    """Write a file of rows; the same rows for the same count and Python. Returns its size in bytes."""
    chance, make = random.Random(count), KINDS[objective]
    with open(file, "w", encoding="utf-8", newline="\n") as out:
        for _ in range(count):
            out.write(json.dumps(make(chance), ensure_ascii=False) + "\n")
    return file.stat().st_size
