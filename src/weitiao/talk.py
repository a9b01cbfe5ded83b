"""Talking with a model in the terminal: word by word, or beside the base model's answer. A face, like cli.py."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from transformers import TextStreamer

from weitiao.core.example import Turn


def beginning(system: str | None) -> tuple[Turn, ...]:
    return (Turn("system", system),) if system else ()


def hear(console: Console) -> str:
    """What the user types; "" at an empty line or at the end of the input."""
    try:
        return (console.input("[bold]you:[/] ") if sys.stdin.isatty() else input()).strip()
    except EOFError:
        return ""


def asking(words: str) -> tuple[Turn, ...]:
    return (Turn("user", words),)


def answering(words: str) -> tuple[Turn, ...]:
    return (Turn("assistant", words),)


def say(opened: Any, turns: Sequence[Turn], room: int, temperature: float, aloud: bool = True) -> str:
    """The answer, printed while it is written."""
    streamer = TextStreamer(opened.tokens.tokenizer, skip_prompt=True, skip_special_tokens=True) if aloud else None
    prompt = opened.tokens.processor.prompt(turns)
    ids = opened.model.generate([prompt], room, temperature, streamer=streamer)[0]
    return opened.tokens.processor.words(ids).strip()


def side_by_side(opened: Any, turns: Sequence[Turn], room: int, temperature: float) -> Columns:
    """The base model's answer and the tuned one's."""
    before = "(this method changes the base weights themselves: compare with `weitiao generate BASE`)"
    if opened.model.attachment.switch is not None:
        with opened.model.reference():
            before = say(opened, turns, room, temperature, aloud=False)
    after = say(opened, turns, room, temperature, aloud=False)
    return Columns([Panel(before, title="before"), Panel(after, title="after", style="green")], equal=True, expand=True)
