"""Talking with a model in the terminal: word by word, or beside the base model's answer. A face, like cli.py."""

import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from transformers import TextStreamer

from weitiao.core.example import Turn
from weitiao.core.generation import generate


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


def addressed(words: str, adapters: Collection[str], now: str) -> tuple[str, str]:
    """Whom a line is for, and its words: "@spam is this spam?" is for spam, and so is what follows.

    >>> addressed("@spam is this spam?", ["spam"], "chat"), addressed("hello", ["spam"], "chat")
    (('spam', 'is this spam?'), ('chat', 'hello'))
    """
    name, _, rest = words.removeprefix("@").partition(" ")
    return (name, rest.strip()) if words.startswith("@") and name in adapters else (now, words)


def say(opened: Any, turns: Sequence[Turn], room: int, temperature: float, aloud: bool = True, adapter: str = "") -> str:
    """The answer, printed while it is written."""
    streamer = TextStreamer(opened.tokenizer, skip_prompt=True, skip_special_tokens=True) if aloud else None
    chosen = [adapter] if opened.adapters else ()
    ids = generate(opened.model, [opened.prompt(turns, adapter)], room, temperature, streamer=streamer, adapters=chosen)[0]
    return opened.decode(ids)


def each(opened: Any, turns: Sequence[Turn], room: int, temperature: float) -> Columns:
    """The base model's answer and every adapter's, written in one batch."""
    names = ["", *opened.adapters]
    written = generate(opened.model, [opened.prompt(turns, x) for x in names], room, temperature, adapters=names)
    answers = [opened.decode(ids) for ids in written]
    panels = [Panel(escape(said), title=name or "base") for name, said in zip(names, answers)]
    return Columns(panels, equal=True, expand=True)


def side_by_side(opened: Any, turns: Sequence[Turn], room: int, temperature: float, adapter: str = "") -> Columns:
    """The base model's answer and the tuned one's."""
    before = "(this method changes the base weights themselves: compare with `weitiao generate BASE`)"
    if opened.model.attachment.set_enabled is not None:
        with opened.model.reference():
            before = say(opened, turns, room, temperature, aloud=False)
    after = say(opened, turns, room, temperature, aloud=False, adapter=adapter)
    return Columns([Panel(before, title="before"), Panel(after, title="after", style="green")], equal=True, expand=True)
