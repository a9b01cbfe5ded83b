"""A conversation in a chat template, and where in the text each assistant's turn begins and ends.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
                                                          ------------------  the span of the assistant's turn

The spans come from the chat template itself: the turns before an assistant turn, rendered with the generation prompt, are
its prompt; what the template adds when that turn is added is what the model must generate: reasoning, content, tool calls
and the stop token. So it holds for every template, without a table of models.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Turn
from weitiao.data.chat.messages import MessageForm, leaves_of, missing_parts, missing_tools
from weitiao.data.chat.template import Template

PROBE = (Turn("user", "Hi."),)


@dataclass(frozen=True)
class Span:
    """An assistant's turn in a text, in characters, with its stop token."""

    start: int
    end: int
    supervised: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns and the template that renders them."""

    template: Template
    turns: tuple[Turn, ...]
    tools: str
    form: MessageForm
    special: Collection[str]
    """The texts of all special tokens."""
    stops: Sequence[str] = ()
    """The texts of the tokens that end an answer."""
    _texts: dict[tuple[int, bool], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def render(self, length: int | None = None, ask: bool = False) -> str:
        """The first turns as one string; `ask` adds the generation prompt. The same again is not rendered again."""
        key = len(self.turns) if length is None else length, ask
        if (text := self._texts.get(key)) is None:
            text = self._texts[key] = self.template.render(self.turns[:length], ask, self.tools, self.form)
        return text

    def spans(self, text: str) -> list[Span] | None:
        """Where each assistant turn is in `text`, the rendered conversation; None if the template rewrote a turn."""
        spans: list[Span] = []
        for i, turn in enumerate(self.turns):
            if turn.role == "assistant":
                conversation = self.render(i + 1)
                start = self._begin(i, conversation)
                end = self._end(conversation, start, turn) if start is not None else 0
                if start is None or not text.startswith(conversation[:end]):
                    return None
                spans.append(Span(start, self._with_stop(text, conversation, end), turn.supervised))
        return spans

    def up_to(self, i: int) -> tuple[str, Span]:
        """The conversation up to an assistant's turn, as the model will see it, and the span of that turn.

        Raises:
            InvalidValue: the template does not write the turn after its prompt.
        """
        conversation = self.render(i + 1)
        start = self._begin(i, conversation)
        if start is None:
            conversation, start = self._after_prompt(i, conversation)
        return conversation, Span(start, self._end(conversation, start, self.turns[i]))

    def check_tools(self, text: str) -> None:
        """Check that the template writes the tools and every call.

        Raises:
            InvalidValue: it does not.
        """
        if self.tools:
            missing = missing_tools(self.tools, text)
            if missing or replace(self, tools="").render() == self.render():
                raise InvalidValue(
                    "the chat template does not render the tools, so they would be lost: set chat_template to one that does"
                )
        for turn in self.turns:
            if turn.tool_calls and "tool_calls" in missing_parts(turn, text):
                raise InvalidValue(
                    "the chat template does not render tool calls, so they would be lost: set chat_template to one "
                    "that does"
                )

    def check_turn(self, i: int, learned: str) -> None:
        """Check that what is trained on holds the whole of a turn with tool calls or reasoning.

        Raises:
            InvalidValue: a part of it is missing.
        """
        turn = self.turns[i]
        if (turn.tool_calls or turn.reasoning) and (missing := missing_parts(turn, learned)):
            raise InvalidValue(
                "the chat template does not render all of an assistant's turn; it leaves out: {parts}",
                parts=", ".join(missing),
            )

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, i: int, conversation: str) -> int | None:
        """Where the assistant's turn number i begins; None if the template rewrote its prompt."""
        has_user = any(turn.role == "user" for turn in self.turns[:i])
        with nullcontext() if has_user else suppress(InvalidValue, DataError):  # some templates need a user's turn
            prompt = self.render(i, ask=True)
            if conversation.startswith(prompt):
                return len(prompt)
        if has_user:
            return None
        # an assistant that speaks first: after what the template writes before any answer
        asked, plain = (self.template.render(PROBE, ask, self.tools, self.form) for ask in (True, False))
        opening = asked.removeprefix(plain)
        turn = self.turns[i]
        first = next(x for x in (turn.reasoning.strip(), turn.content.strip(), *leaves_of(turn)) if x)
        position = conversation.rfind(opening, 0, max(0, conversation.find(first)))
        between = conversation[position + len(opening) : conversation.find(first)]
        return position + len(opening) if position >= 0 and asked.startswith(plain) and not between.strip() else None

    def _after_prompt(self, i: int, conversation: str) -> tuple[str, int]:
        """A turn behind its prompt, where the template writes the prompt in another form as soon as it is answered: Mistral
        writes the system message into the last question only.

        Returns:
            (the prompt and the turn, where the turn begins)

        Raises:
            InvalidValue: it cannot be told where the turn begins.
        """
        prompt = self.render(i, ask=True)
        end = prompt[max((prompt.rfind(x) for x in self.special), default=-1) :]
        position = conversation.rfind(end)
        turn = conversation[position + len(end) :]
        if not prompt or position < 0 or missing_parts(self.turns[i], turn):
            raise InvalidValue("the chat template does not continue its own generation prompt with the assistant's content")
        return prompt + turn, len(prompt)

    def _end(self, conversation: str, start: int, turn: Turn) -> int:
        """Where the turn ends: after the first special token that follows its content, or the stop after its calls."""
        content = turn.content.strip()
        position = conversation.find(content, start)
        end = (position + len(content)) if position >= 0 else start
        if turn.tool_calls:
            pieces = [(conversation.rfind(x), x) for x in leaves_of(turn)]
            end = max(end, *(i + len(x) for i, x in pieces if i >= start), 0)
            stops = [x for x in self.stops if conversation.find(x, end) >= 0]
            return _after_first(conversation, end, stops) or _after_last(conversation, end, self.special)
        if after := _after_first(conversation, end, self.special):
            return after
        stripped = len(conversation.rstrip())
        return stripped if stripped < len(conversation) and position >= 0 else len(conversation)

    def _with_stop(self, text: str, conversation: str, end: int) -> int:
        """The end with the stop token, where that is the next turn's first token, as in GLM's templates."""
        if end < len(conversation.rstrip()) or conversation[:end].endswith(tuple(self.special)):
            return end
        following = len(text) - len(text[end:].lstrip())
        stop = next((x for x in self.stops if text.startswith(x, following)), "")
        return following + len(stop) if stop else end


def _after_first(text: str, start: int, tokens: Collection[str]) -> int:
    """Where the first of the tokens ends; 0 if there is none."""
    following = [(text.find(token, start), token) for token in tokens]
    following = [(i, token) for i, token in following if i >= 0]
    if not following:
        return 0
    first = min(following)[0]
    return first + max(len(token) for i, token in following if i == first)


def _after_last(text: str, start: int, tokens: Collection[str]) -> int:
    """Where the last of the tokens ends; if there is none, the end of the text."""
    ends = [text.rfind(token, start) + len(token) for token in tokens if text.find(token, start) >= 0]
    return max(ends, default=len(text.rstrip()))
