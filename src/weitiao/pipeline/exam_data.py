"""Exams with their items: the data of a file, a folder, a dataset of the hub or a package. Nothing is downloaded that the
exam does not name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitiao.core.errors import DataError, InvalidValue, RecipeError
from weitiao.core.exam import DEFAULT, Exam, PackagedFile, read_exam
from weitiao.core.example import BadRow
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module
from weitiao.data.hub import HUGGING_FACE, dataset_files
from weitiao.data.read import files_of, reader_of
from weitiao.data.records import Reader
from weitiao.evaluate.examination.fact_options import FactSource
from weitiao.evaluate.examination.folders import folder_rows
from weitiao.evaluate.examination.harness_task import is_task, read_task, write_task
from weitiao.evaluate.examination.items import ExamItem, PreparedExam, SourceRow, make_items, prepare
from weitiao.model.loading.packages import PackageFile


def open_exams(names: Sequence[str]) -> list[PreparedExam]:
    """Exams by name or file, with their items; "default": those of core/exam.py.

    Raises:
        RecipeError: an exam is not valid, or two have one name.
        DataError: an exam's data cannot be used.
        ModelError: a package cannot be downloaded.
    """
    written = [x for name in names for x in (sum(DEFAULT.values(), ()) if name == "default" else (name,))]
    opened = [_open(*find_exam(name)) for name in dict.fromkeys(written)]
    titles = [x.exam.name for x in opened]
    if twice := next((x for x in titles if titles.count(x) > 1), None):
        raise RecipeError("two exams are called {name!r}: their scores would replace each other.", name=twice)
    return opened


def find_exam(name: str) -> tuple[Exam, Path]:
    """An exam by its name (mmlu:FOLDER where its data are a folder of yours) or by its YAML file, which may be a task of
    lm-evaluation-harness; and the file that its paths are relative to.

    Raises:
        RecipeError: there is none, or it is not valid.
    """
    path = Path(name).expanduser()
    if is_task(path):
        return read_task(path), path
    shipped, colon, folder = name.partition(":")
    exam, file = read_exam(name if path.is_file() or not colon else shipped)
    if exam.data.layout and colon and not exam.data.path:
        exam = exam.model_copy(update={"data": exam.data.model_copy(update={"path": str(Path(folder).absolute())})})
    if exam.data.layout and not exam.data.path:
        raise RecipeError("exam {exam} needs its folder: {exam}:FOLDER.", exam=exam.name)
    return exam, file


@dataclass(frozen=True)
class ExamView:
    """An exam to look at before it is taken."""

    exam: Exam
    items: int
    """How many are asked."""
    first: ExamItem
    prompt: str
    """What a model is asked first, with everything that stands before it."""

    def as_json(self) -> dict[str, Any]:
        first = {"prompt": self.prompt, "options": list(self.first.options), "answer": self.first.solved}
        return {**self.exam.model_dump(mode="json"), "items": self.items, "first": first}


def view_exam(name: str) -> ExamView:
    """An exam's first question as a model is asked it.

    Raises:
        RecipeError, DataError, ModelError: as open_exams.
    """
    (opened,) = open_exams([name])
    first = opened.items[0]
    return ExamView(opened.exam, len(opened.items), first, opened.prefixes()[first.group] + first.question)


def export_exam(name: str, folder: str | Path) -> Path:
    """Write an exam as a task of lm-evaluation-harness; the task's file.

    Raises:
        RecipeError: there is no such exam, or the harness has no such scoring.
        DataError: its data cannot be used.
    """
    return write_task(open_exams([name])[0], Path(folder))


def _open(exam: Exam, file: Path) -> PreparedExam:
    items = make_items(exam, _rows(exam, file, exam.data.split))
    few_shot = exam.few_shot
    if not few_shot.n or not few_shot.data:
        return prepare(exam, items, None)
    if exam.data.layout or exam.data.hub:
        return prepare(exam, items, make_items(exam, _rows(exam, file, few_shot.data)))
    return prepare(exam, items, make_items(exam, _file_rows(exam, _relative(few_shot.data, file))))


def _rows(exam: Exam, file: Path, split: str) -> list[SourceRow]:
    """The rows of an exam, from wherever its data are."""
    data = exam.data
    if data.facts:
        files = [_packaged(x).fetch() for x in data.packages] or [_relative(data.path, file)]
        try:
            made = list(find_module(FactSource, data.facts).rows(files, data.settings))
        except InvalidValue as error:
            raise DataError("exam {exam}: {problem}", exam=exam.name, problem=error.message) from None
        return [SourceRow(f"{data.facts}, {x['id']}", x) for x in made]
    if data.layout:
        return list(folder_rows(exam.name, _relative(data.path, file), data.layout, split, data.subjects))
    if data.hub:
        return [row for x in _hub_files(exam, split) for row in _file_rows(exam, x)]
    return _file_rows(exam, _relative(data.path, file))


def _relative(path: str, file: Path) -> Path:
    return file.parent / Path(path).expanduser()


def _packaged(file: PackagedFile) -> PackageFile:
    name = file.package.removeprefix("npm:")
    return PackageFile(name, file.version, file.file, file.sha256, file.megabytes, npm=name != file.package)


def _file_rows(exam: Exam, path: Path) -> list[SourceRow]:
    """The rows of a file; a bad one is an error: an exam without some of its items is another exam."""
    source, rows = Source(path=str(path)), list[SourceRow]()
    for file in files_of(source):
        for record in find_module(Reader, reader_of(file, source)).read(file, source.encoding):
            if isinstance(record, BadRow):
                raise DataError(
                    "exam {exam}: {where}: {problem}", exam=exam.name, where=record.where, problem=record.reason
                )
            rows.append(SourceRow(str(record.where), record.fields))
    return rows


def _hub_files(exam: Exam, split: str) -> list[Path]:
    """A split of a dataset of the Hugging Face hub, as Parquet files; they are downloaded once."""
    try:
        return dataset_files(Source(path=f"{HUGGING_FACE}{exam.data.hub}", subset=exam.data.config or None, split=split))
    except DataError as error:
        raise DataError("exam {exam}: {problem}", exam=exam.name, problem=error.message) from None
