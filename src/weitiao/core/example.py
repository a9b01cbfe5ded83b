"""Example: one row of data as text, before tokenization. Small frozen types without tensors.

An Objective declares the Example that it trains on; a mapping (data/mappings/) makes one from a file's columns.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from weitiao.core.bio_tags import tags_to_entities
from weitiao.core.messages import Message

Role = Literal["system", "user", "assistant", "tool"]
EVALUATION_COLUMNS = ("group", "tests", "schema", "refusal")
"""Columns that are read for evaluation alone: rows of one group are not independent of each other (a document, a
conversation, a patient); the tests of generated code; the JSON Schema of an answer; the fixed answer of a
question out of scope."""
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(slots=True, unsafe_hash=True)
class SourceLocation:
    """Where a row comes from, so that an error can name it. Nobody changes one; frozen, it would cost twice the time."""

    file: str
    line: int
    """Counted from 1; in a table, the row."""
    offset: int | None = None
    """Bytes from the start of the (unpacked) file, for formats with lines."""
    length: int | None = field(default=None, compare=False)
    """Bytes of the row with its line end; None where there is no offset, or to the end of the file."""

    def __str__(self) -> str:
        if self.offset is None:
            return str(Message("{file}, line {line}", file=self.file, line=self.line))
        return str(Message("{file}, line {line}, byte {offset}", file=self.file, line=self.line, offset=self.offset))


@dataclass(frozen=True, slots=True)
class TextExample:
    """An example whose whole text is the model's input."""

    text: str

    @property
    def full_text(self) -> str:
        return self.text

    @property
    def input_text(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Text(TextExample):
    """Plain text, for continued pretraining."""

    answer: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, in an assistant's turn."""

    name: str
    arguments: str
    """JSON, an object."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str
    supervised: bool = True
    """Of an assistant's turn: it carries loss. False: it is context only."""
    reasoning: str = ""
    """What the assistant thinks before it answers."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    """Of a tool's result: the tool."""
    tool_call_id: str = ""
    """Of a tool's result: the call that it answers."""

    @property
    def is_target(self) -> bool:
        """Whether it carries loss."""
        return self.supervised and self.role == "assistant"

    @property
    def text(self) -> str:
        """Everything in it: reasoning, content and calls."""
        calls = (f"{call.name} {call.arguments}" for call in self.tool_calls)
        return "\n".join(x for x in (self.reasoning, self.content, *calls) if x)


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. The assistant's turns carry loss, the others are context."""

    turns: tuple[Turn, ...]
    tools: str = ""
    """The tools that the assistant may call: JSON, a list; "" if there are none."""

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """Everything before the last assistant turn that carries loss."""
        return self.turns[: self._last]

    @property
    def full_text(self) -> str:
        return _as_text(self.turns)

    @property
    def input_text(self) -> str:
        return _as_text(self.prompt)

    @property
    def answer(self) -> str:
        """What the last assistant turn that carries loss says, or which tools it calls."""
        turn = self.turns[self._last]
        return replace(turn, reasoning="").text

    @property
    def system(self) -> str:
        """The system message at its start; "" if there is none."""
        return self.turns[0].content if self.turns[0].role == "system" else ""

    @property
    def _last(self) -> int:
        return max(i for i, turn in enumerate(self.turns) if turn.is_target)


@dataclass(frozen=True, slots=True)
class TextLabel(TextExample):
    """A text and its class; for multi-label data, any number of classes."""

    labels: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The classes as one string."""
        return ", ".join(self.labels)


@dataclass(frozen=True, slots=True)
class TokenTags(TextExample):
    """A text, its units (words; in Chinese, characters) and a tag for each: B-person I-person O ..."""

    units: tuple[tuple[int, int], ...]
    """Start and end of each unit in the text, in characters."""
    tags: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The entities and their types as one string; the tags themselves if they follow no known scheme."""
        try:
            entities = tags_to_entities(self.tags, repair=True)
        except ValueError:
            return " ".join(self.tags)
        spans = ((self.text[self.units[first][0] : self.units[end - 1][1]], kind) for first, end, kind in entities)
        return ", ".join(f"{span} ({kind})" for span, kind in spans) or "none"


@dataclass(frozen=True, slots=True)
class ExtractiveQA:
    """A question, a context that may contain its answer, and the reference answers; none: the context has no answer."""

    question: str
    context: str
    answers: tuple[tuple[int, str], ...]
    """Each answer's start in the context, in characters, and its text."""

    @property
    def full_text(self) -> str:
        return f"{self.question}\n{self.context}"

    @property
    def input_text(self) -> str:
        return self.full_text

    @property
    def answer(self) -> str:
        """The first reference answer; empty if there is none."""
        return self.answers[0][1] if self.answers else ""


@dataclass(frozen=True, slots=True)
class TextScore:
    """A text, or two that are compared, and the numbers to predict."""

    text: str
    values: tuple[float, ...]
    other: str = ""

    @property
    def full_text(self) -> str:
        return f"{self.text}\n{self.other}" if self.other else self.text

    @property
    def input_text(self) -> str:
        return self.full_text

    @property
    def answer(self) -> str:
        """The numbers as one string."""
        return ", ".join(f"{x:g}" for x in self.values)


@dataclass(frozen=True, slots=True)
class SourceTarget:
    """A text and the text to generate from it: a translation, a summary, a correction."""

    text: str
    target: str

    @property
    def full_text(self) -> str:
        return f"{self.text}\n{self.target}"

    @property
    def input_text(self) -> str:
        return self.text

    @property
    def answer(self) -> str:
        return self.target


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio file, as it was when the data were read."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class AudioText(SourceTarget):
    """Speech and its transcript: `text` is the path of an audio file, `target` the transcript."""

    sha256: str = ""
    """Of the file's bytes: a changed file is another example."""
    seconds: float = 0.0

    @property
    def full_text(self) -> str:
        return self.target

    @property
    def audio(self) -> Audio:
        return Audio(self.text, self.sha256)


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a matching document, with negatives that do not match; or two texts and their similarity."""

    text: str
    other: str
    negatives: tuple[str, ...] = ()
    similarity: float | None = None
    history: tuple[str, ...] = ()
    """Documents that the query's user has had, the oldest first: they are not ranked."""

    @property
    def full_text(self) -> str:
        return f"{self.text}\n{self.other}"

    @property
    def input_text(self) -> str:
        return self.text

    @property
    def answer(self) -> str:
        return self.other


@dataclass(frozen=True, slots=True)
class Task:
    """An Example of one of several tasks that are trained together."""

    task: str
    """The task's name."""
    example: "Example"

    @property
    def full_text(self) -> str:
        return self.example.full_text

    @property
    def input_text(self) -> str:
        return self.example.input_text

    @property
    def answer(self) -> str:
        return self.example.answer


Example = Text | Chat | TextLabel | TokenTags | ExtractiveQA | TextScore | SourceTarget | Pair | Task
"""All have `full_text`, `input_text` (the model's input) and `answer` (the reference, as one string)."""


@dataclass(frozen=True, slots=True)
class SourcedExample:
    """An Example and where it came from."""

    example: Example
    where: SourceLocation
    source: int = 0
    """Index of its source in the recipe."""
    parse_special_tokens: bool = False
    """Special tokens in its texts become control tokens."""
    for_evaluation: Mapping[str, str] = field(default_factory=dict)
    """What the row's columns of EVALUATION_COLUMNS hold, where it has them."""

    @property
    def task(self) -> str:
        """Its task; "" if the recipe has one task."""
        return self.example.task if isinstance(self.example, Task) else ""

    @property
    def without_task(self) -> "SourcedExample":
        """The same example outside its task."""
        return replace(self, example=self.example.example) if isinstance(self.example, Task) else self


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why. It goes to bad_rows.jsonl; the other rows are used."""

    where: SourceLocation
    reason: Message
    excerpt: str = ""
    code: str = "row"
    """The kind of reason, for counting: encoding, json, csv, scan ...; row: its columns make no example."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", Message(self.reason))


def _as_text(turns: tuple[Turn, ...]) -> str:
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns)


def plain(text: str) -> str:
    """A text in the form in which texts are compared: NFKC, lower case, single spaces.

    >>> plain("  Ｈello\\n  World ")
    'hello world'
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def content_hash(text: str) -> str:
    """sha256 of the normalized text: equal for texts that differ only in case, width or spaces."""
    return hashlib.sha256(plain(text).encode("utf-8", "surrogatepass")).hexdigest()
