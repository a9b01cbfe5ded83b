"""Example: one piece of data, still in human words. Small frozen types, no tensors.

An Objective declares which one it eats; a mapping (data/mapping.py) says which one it makes of a file's columns.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from weitiao.core.bio_tags import entities
from weitiao.core.messages import Message

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class SourceLocation:
    """Where a piece of data came from, so that a complaint can name it."""

    file: str
    line: int
    """Counted from 1. For a table, the row."""
    offset: int | None = None
    """Bytes from the start of the file, where the format has such a thing."""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}" + (f", byte {self.offset}" if self.offset is not None else "")


@dataclass(frozen=True)
class TextExample:
    """What is said of one text: all its words are what a model is given."""

    text: str

    @property
    def full_text(self) -> str:
        return self.text

    @property
    def question(self) -> str:
        return self.text


@dataclass(frozen=True)
class Text(TextExample):
    """Plain text to continue (continued pretraining)."""

    answer: ClassVar[str] = ""


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation. The assistant's turns are learnt, the others are read."""

    turns: tuple[Turn, ...]

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """Everything before the last assistant turn."""
        return self.turns[: self._last]

    @property
    def full_text(self) -> str:
        return _spoken(self.turns)

    @property
    def question(self) -> str:
        return _spoken(self.prompt)

    @property
    def answer(self) -> str:
        """The last assistant turn's words."""
        return self.turns[self._last].content

    @property
    def _last(self) -> int:
        return max(i for i, turn in enumerate(self.turns) if turn.role == "assistant")


@dataclass(frozen=True)
class TextLabel(TextExample):
    """A text and its class; several classes, or none, where more than one may hold."""

    labels: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The classes as one string."""
        return ", ".join(self.labels)


@dataclass(frozen=True)
class TokenTags(TextExample):
    """A text, its units (words; of Chinese, characters) and a tag for each: B-person I-person O ..."""

    units: tuple[tuple[int, int], ...]
    """Where each begins and ends in the text, in characters."""
    tags: tuple[str, ...]

    @property
    def answer(self) -> str:
        """The entities and their kinds as one string; the tags, where they are of no known scheme."""
        try:
            found = entities(self.tags, repair=True)
        except ValueError:
            return " ".join(self.tags)
        places = ((self.text[self.units[first][0] : self.units[end - 1][1]], kind) for first, end, kind in found)
        return ", ".join(f"{words} ({kind})" for words, kind in places) or "none"


@dataclass(frozen=True)
class ExtractiveQA:
    """A question, a text that may hold its answer, and the answers that count as right; none: it is not in there."""

    asked: str
    context: str
    answers: tuple[tuple[int, str], ...]
    """Where each begins in the context, in characters, and its words."""

    @property
    def full_text(self) -> str:
        return f"{self.asked}\n{self.context}"

    @property
    def question(self) -> str:
        return self.full_text

    @property
    def answer(self) -> str:
        """The first of the right ones."""
        return self.answers[0][1] if self.answers else ""


@dataclass(frozen=True)
class TextScore:
    """A text, or two that are compared, and the numbers to predict."""

    text: str
    values: tuple[float, ...]
    other: str = ""

    @property
    def full_text(self) -> str:
        return f"{self.text}\n{self.other}" if self.other else self.text

    @property
    def question(self) -> str:
        return self.full_text

    @property
    def answer(self) -> str:
        """The numbers as one string."""
        return ", ".join(f"{x:g}" for x in self.values)


@dataclass(frozen=True)
class SourceTarget:
    """A text and what is to be made of it: a translation, a summary, another spelling."""

    text: str
    target: str

    @property
    def full_text(self) -> str:
        return f"{self.text}\n{self.target}"

    @property
    def question(self) -> str:
        return self.text

    @property
    def answer(self) -> str:
        return self.target


@dataclass(frozen=True)
class Audio:
    """A sound file, as it was when the data were read."""

    file: str
    sha256: str


@dataclass(frozen=True)
class AudioText(SourceTarget):
    """Speech and what is said in it: the text is the name of a sound file."""

    sha256: str = ""
    """Of the file's bytes: a changed sound is another example."""
    seconds: float = 0.0

    @property
    def full_text(self) -> str:
        return self.target

    @property
    def sound(self) -> Audio:
        return Audio(self.text, self.sha256)


@dataclass(frozen=True)
class Pair:
    """Two texts that belong together, and such as do not belong to the first; or two and how alike they are."""

    text: str
    other: str
    negatives: tuple[str, ...] = ()
    likeness: float | None = None

    @property
    def full_text(self) -> str:
        return f"{self.text}\n{self.other}"

    @property
    def question(self) -> str:
        return self.text

    @property
    def answer(self) -> str:
        return self.other


@dataclass(frozen=True)
class Task:
    """An Example of one of several tasks that are learnt together."""

    task: str
    """The task's name."""
    example: "Example"

    @property
    def full_text(self) -> str:
        return self.example.full_text

    @property
    def question(self) -> str:
        return self.example.question

    @property
    def answer(self) -> str:
        return self.example.answer


Example = Text | Chat | TextLabel | TokenTags | ExtractiveQA | TextScore | SourceTarget | Pair | Task
"""All have `words` (everything), `question` (what a model is given) and `answer` (what would be right, as one string)."""


@dataclass(frozen=True)
class SourcedExample:
    """An Example and where it came from."""

    example: Example
    where: SourceLocation
    source: int = 0
    """Which of the recipe's sources."""

    @property
    def task(self) -> str:
        """The task it belongs to, where there are several; else ""."""
        return self.example.task if isinstance(self.example, Task) else ""

    @property
    def alone(self) -> "SourcedExample":
        """The same, as if its task were the only one."""
        return replace(self, example=self.example.example) if isinstance(self.example, Task) else self


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why. It goes to bad_rows.jsonl; the other rows are used."""

    where: SourceLocation
    reason: Message
    excerpt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", Message(self.reason))


def _spoken(turns: tuple[Turn, ...]) -> str:
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


def plain(text: str) -> str:
    """Words as they count when two texts are compared: NFKC, lower case, single spaces.

    >>> plain("  Ｈello\\n  World ")
    'hello world'
    """
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()


def content_hash(text: str) -> str:
    """sha256 of the plain form: equal for texts that differ only in case, width or spaces."""
    return hashlib.sha256(plain(text).encode("utf-8", "surrogatepass")).hexdigest()
