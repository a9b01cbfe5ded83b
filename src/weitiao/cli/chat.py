"""A conversation in the terminal: printed as it is generated, or next to the base model's answer."""

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

from weitiao.core.messages import Message, translate

if TYPE_CHECKING:
    from weitiao.pipeline.inference import Model

Messages = list[dict[str, str]]


def tell_system_message(model: "Model", system: str | None) -> None:
    """Print the system message that is used because the training rows had it; answers go to standard output, this not."""
    assets = [model.assets, *model.adapters.values()]
    for message in dict.fromkeys(x.system for x in assets if x.system and system is None):
        text = Message('system message of the training rows: {message!r} (off: --system "")', message=message[:200])
        Console(stderr=True, highlight=False).print(Text(str(text), "dim"), soft_wrap=True)


def tell_slow_engine(model: "Model") -> None:
    """Print why answers are slower than they could be, to standard error."""
    from weitiao.pipeline.inference import engine_decision

    decision = engine_decision(model)
    if decision is not None and decision.value != "block":
        Console(stderr=True, highlight=False).print(Text(str(decision.reason), "dim"), soft_wrap=True)


def tell_dropped_turns(model: "Model", messages: Messages, settings: dict[str, Any]) -> None:
    """Print how many of the messages the model will not see, because the conversation is too long."""
    from weitiao.pipeline.prompting import as_turns

    room = settings["sampling"].max_new_tokens
    prompt = model.prompt(as_turns(messages), settings["adapter"], settings["system"], max_new_tokens=room)
    if prompt.dropped:
        text = Message(
            "{n} of {total} messages are left out of the prompt: it is too long", n=len(prompt.dropped), total=len(messages)
        )
        Console(stderr=True, highlight=False).print(Text(str(text), "dim"), soft_wrap=True)


def read_line(console: Console) -> str:
    """What the user types; "" at an empty line or at the end of the input."""
    try:
        return (console.input(f"[bold]{translate('you')}:[/] ") if sys.stdin.isatty() else input()).strip()
    except EOFError:
        return ""


def split_address(text: str, adapters: Collection[str], current: str) -> tuple[str, str]:
    """The adapter that a line is for, and its text: "@spam is this spam?" is for spam, and so is what follows.

    >>> split_address("@spam is this spam?", ["spam"], "chat"), split_address("hello", ["spam"], "chat")
    (('spam', 'is this spam?'), ('chat', 'hello'))
    """
    name, _, rest = text.removeprefix("@").partition(" ")
    return (name, rest.strip()) if text.startswith("@") and name in adapters else (current, text)


def print_answer(model: "Model", messages: Messages, settings: dict[str, Any]) -> str:
    """The answer, printed as it is generated."""
    pieces: list[str] = []
    for piece in model.generate(messages, stream=True, **settings):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print()
    return "".join(pieces).strip()


def all_answers(model: "Model", messages: Messages, settings: dict[str, Any]) -> Columns:
    """The answers of the base model and of every adapter, generated in one batch."""
    names = ["", *model.adapters]
    answers = model.generate([messages] * len(names), adapter=names, **settings)
    return _panels([(name or translate("base"), answer, "") for name, answer in zip(names, answers)])


def compare_with_base(model: "Model", messages: Messages, settings: dict[str, Any]) -> Columns:
    """The base model's answer and the tuned one's."""
    before = translate("(this method changes the base weights themselves: compare with `weitiao generate BASE`)")
    if model.model.attachment.set_enabled is not None:
        with model.disable_adapter():
            before = model.generate(messages, **{**settings, "adapter": ""})
    after = model.generate(messages, **settings)
    return _panels([(translate("before"), before, ""), (translate("after"), after, "green")])


def _panels(answers: Sequence[tuple[str, str, str]]) -> Columns:
    """(title, text, style) each as a panel."""
    panels = [Panel(escape(text), title=title, style=style or "none") for title, text, style in answers]
    return Columns(panels, equal=True, expand=True)
