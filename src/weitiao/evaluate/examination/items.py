"""Rows of an exam's data -> its items, with everything that could make a score wrong refused by file and line."""

import ast
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.exam import Exam
from weitiao.core.jinja_sandbox import Sandbox, time_limit
from weitiao.core.messages import Message, joined

SHOWN_PROBLEMS = 5
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NATIVE = re.compile(r"\{\{\s*(\w+)\s*\}\}|(\w+)")  # a template that is one column


@dataclass(frozen=True)
class SourceRow:
    """One row of an exam's data."""

    where: str
    """File and line."""
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class ExamItem:
    """A question with its options."""

    id: str
    question: str
    """As it is asked, up to where the answer begins."""
    options: tuple[str, ...]
    """Empty: the answer is generated freely."""
    solution: int
    """The number of the right option; -1 where there are none."""
    answer: str
    """The right answer's text."""
    group: str = ""
    """Items of one group have the same solved items before them."""
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The row it was made of."""

    @property
    def solved(self) -> str:
        """The text of the right answer."""
        return self.options[self.solution] if self.options else self.answer


class ItemMaker:
    """An exam's templates, compiled."""

    def __init__(self, exam: Exam) -> None:
        environment = Sandbox(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        environment.filters["regex_replace"] = _regex_replace  # lm-evaluation-harness has it
        self.exam = exam

        def compiled(key: str, text: str) -> jinja2.Template:
            try:
                return environment.compiled(text, key)
            except jinja2.TemplateError as error:
                raise DataError("exam {exam}: {key}: {error}", exam=exam.name, key=key, error=str(error)) from None

        self._question, self._answer = compiled("question", exam.question), compiled("answer", exam.answer)
        self._id, self._instruction = compiled("item_id", exam.item_id), compiled("instruction", exam.instruction)
        options = (exam.options,) if isinstance(exam.options, str) else exam.options
        self._options = [compiled("options", x) for x in options]

    def item(self, row: SourceRow, number: int) -> ExamItem:
        """The item of a row.

        Raises:
            InvalidValue: the templates do not fit the row, or its answer is not one of its options.
        """
        question = self._render(self._question, "question", row)
        options = self._options_of(row)
        _check_options(options)
        answer = self._render(self._answer, "answer", row).strip()
        solution = _solution(answer, options, self.exam.answer_form) if options else -1
        if not question.strip():
            raise InvalidValue("the question is empty")
        name = self._render(self._id, "item_id", row) if self.exam.item_id else str(number)
        group = str(row.fields.get(self.exam.group, "")) if self.exam.group else ""
        return ExamItem(name, question, options, solution, answer, group, row.fields)

    def instruction(self, item: ExamItem) -> str:
        """The text before everything else, of the item's group."""
        if not self.exam.group:
            return self.exam.instruction
        return self._render(self._instruction, "instruction", SourceRow(item.id, item.fields))

    def _options_of(self, row: SourceRow) -> tuple[str, ...]:
        if not isinstance(self.exam.options, str):
            return tuple(self._render(x, "options", row) for x in self._options)
        if not self.exam.options:
            return ()
        column = NATIVE.fullmatch(self.exam.options.strip())
        value = row.fields.get(column[1] or column[2]) if column else None
        if value is None or isinstance(value, str):
            value = self._listed(self._render(self._options[0], "options", row) if value is None else value)
        if isinstance(value, Mapping):
            value = list(value.values())
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise InvalidValue("options: expected a list, not {value!r}", value=str(value)[:80])
        return tuple(str(x) for x in value)

    def _listed(self, text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text

    def _render(self, template: jinja2.Template, key: str, row: SourceRow) -> str:
        try:
            with time_limit():
                return template.render(**row.fields)
        except Exception as error:  # a stranger's template: whatever it raises, the user needs one sentence
            raise InvalidValue("{key}: {error}", key=key, error=str(error)) from None


def _regex_replace(text: str, pattern: str, replacement: str, count: int = 0) -> str:
    return re.sub(pattern, replacement, text, count=count)


def _check_options(options: tuple[str, ...]) -> None:
    if len(options) == 1:
        raise InvalidValue("there is only one option: {option!r}", option=options[0])
    if empty := [i for i, x in enumerate(options) if not x.strip()]:
        raise InvalidValue("option {number} is empty", number=1 + empty[0])
    if twice := next((x for x in options if options.count(x) > 1), None):
        raise InvalidValue("two options are equal: {option!r}", option=twice)


def _solution(answer: str, options: tuple[str, ...], form: str) -> int:
    """The number of the option that an answer means.

    >>> _solution("B", ("Rome", "Paris"), "auto")
    1
    """
    stripped = [x.strip() for x in options]
    readings = {
        "text": stripped.index(answer) if answer in stripped else None,
        "number": int(answer) if answer.isdecimal() and int(answer) < len(options) else None,
        "letter": LETTERS.index(answer) if len(answer) == 1 and answer in LETTERS[: len(options)] else None,
    }
    found = {x for name, x in readings.items() if x is not None and form in ("auto", name)}
    if len(found) > 1:
        raise InvalidValue(
            "the answer {answer!r} is the text of one option and the number or letter of another: set answer_form",
            answer=answer,
        )
    if not found:
        raise InvalidValue("the answer {answer!r} is not among the options: {options}", answer=answer, options=str(options))
    return found.pop()


def make_items(exam: Exam, rows: Iterable[SourceRow]) -> list[ExamItem]:
    """The items of all rows.

    Raises:
        DataError: there are none, two have one name, or a row is no item (the first ones, by file and line).
    """
    maker, items, problems = ItemMaker(exam), list[ExamItem](), list[Message]()
    for number, row in enumerate(rows, 1):
        try:
            items.append(maker.item(row, number))
        except InvalidValue as error:
            problems.append(Message("{where}: {problem}", where=row.where, problem=error.message))
    if problems:
        more = len(problems) - SHOWN_PROBLEMS
        shown = [*problems[:SHOWN_PROBLEMS], *([Message("and {n:,} more rows", n=more)] if more > 0 else [])]
        raise DataError("exam {exam}: {problems}", exam=exam.name, problems=joined("\n", shown))
    if not items:
        raise DataError("exam {exam} has no items.", exam=exam.name)
    names = [x.id for x in items]
    if len(set(names)) < len(names):
        twice = next(x for x in names if names.count(x) > 1)
        raise DataError("exam {exam}: two items are called {name!r}; see item_id.", exam=exam.name, name=twice)
    return items


@dataclass(frozen=True)
class PreparedExam:
    """An exam with its items, ready for any model."""

    exam: Exam
    items: tuple[ExamItem, ...]
    """Those that are asked."""
    examples: Mapping[str, tuple[ExamItem, ...]] = field(default_factory=dict)
    """Group -> the solved items before each of its questions."""

    def prefixes(self) -> dict[str, str]:
        """Group -> what stands before each of its questions."""
        maker = ItemMaker(self.exam)
        first = {x.group: x for x in reversed(self.items)}
        return {group: maker.instruction(x) + self._solved(group) for group, x in first.items()}

    def _solved(self, group: str) -> str:
        exam = self.exam
        return "".join(f"{x.question}{exam.delimiter}{x.solved}{exam.separator}" for x in self.examples.get(group, ()))


def prepare(exam: Exam, items: Sequence[ExamItem], pool: Sequence[ExamItem] | None) -> PreparedExam:
    """An exam's items, and the solved ones before them.

    Args:
        pool: the rows of few_shot.data; None: the examples are taken out of the items.

    Raises:
        DataError: a group has too few.
    """
    examples: dict[str, tuple[ExamItem, ...]] = {}
    for group in dict.fromkeys(x.group for x in items) if exam.few_shot.n else ():
        candidates = [x for x in (items if pool is None else pool) if x.group == group]
        available = len(candidates) - (pool is None)  # one is left to ask
        if exam.few_shot.n > available:
            raise DataError(
                "exam {exam}: few_shot.n is {n}, and there are {available} rows to take examples from{group}.",
                exam=exam.name,
                n=exam.few_shot.n,
                available=max(0, available),
                group=f" ({group})" if group else "",
            )
        seed = exam.few_shot.seed
        drawn = candidates[: exam.few_shot.n] if seed is None else random.Random(seed).sample(candidates, exam.few_shot.n)
        examples[group] = tuple(drawn)
    solved = {id(x) for drawn in examples.values() for x in drawn}
    asked = [x for x in items if id(x) not in solved]
    limit = exam.data.limit
    if limit is not None and limit < len(asked):
        chosen = set(random.Random(exam.few_shot.seed or 0).sample(range(len(asked)), limit))
        asked = [x for i, x in enumerate(asked) if i in chosen]
    return PreparedExam(exam, tuple(asked), examples)
