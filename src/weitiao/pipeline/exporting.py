"""Export a Run, a merged model or a base: merge in memory, write a format, open it with its own engine and compare."""

import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from weitiao.core.errors import DataError, RecipeError
from weitiao.core.example import Turn
from weitiao.core.messages import Message
from weitiao.core.new_folder import in_new_folder, temporary_place
from weitiao.core.registry import create, find, nearest
from weitiao.core.reporter import Reporter
from weitiao.core.third_party import muted
from weitiao.deploy.export.format import ExportSource, Format, Written
from weitiao.deploy.verification.verify import VerificationReport, verify
from weitiao.pipeline.adapter_folder import write_adapter_folder
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.merging import merge_run
from weitiao.pipeline.trained import read_trained
from weitiao.pipeline.verification import encoded_rows, examples_of, open_form, subject_of

NUM_ROWS = 64  # real inputs that a format compares itself
ROW_TOKENS = 512
MERGE_ROWS = 8  # that are compared after merging; what is exported is compared with all
ENGINES = {"peft": "peft"}


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with what was trained."""

    folder: Path
    format: str
    written: Written
    verification: VerificationReport | None
    """None: nothing here opens the format; `written.checks` and `written.obstacle` say what was compared instead."""

    @property
    def lines(self) -> list[Message]:
        """A sentence a line: sizes, what was compared, what was not."""
        lines = [*self.written.notes, *self.written.checks]
        lines += self.verification.lines if self.verification else []
        return lines + ([self.written.obstacle] if self.written.obstacle else [])


@in_new_folder
def export(
    target: str,
    out: str,
    format: str,
    reporter: Reporter,
    settings: Mapping[str, Any] | None = None,
    task: str = "",
    max_rows: int | None = None,
) -> ExportReport:
    """Write a model in a format that another program opens, and compare it with what was trained.

    Args:
        target: a Run, an adapter folder, a merged folder or a base.
        out: a new folder.
        format: a file of deploy/formats/.
        settings: of the format: type, adapter ...
        task: of a multi-task Run, which task.
        max_rows: rows of the Run that are compared; None: until about 2,000 answer tokens.

    Raises:
        RecipeError: there is no such format or setting, or a package is missing.
        ModelError: the other program cannot have the model, or what was written is not the tuned model.
    """
    part, folder = read_format(format, settings or {}), Path(out)
    with reporter.spin(Message("loading the model")):
        model = open_model(target, precision="fp32")
    model = model.for_task(task) if task else model
    with tempfile.TemporaryDirectory(dir=temporary_place(folder)) as temporary, muted():
        source = source_of(model, target, Path(temporary), task, reporter)
        with reporter.spin(Message("writing {format}", format=format)):
            written = part.write(source, folder)
    report = None
    if written.form is not None and can_open(part.name, written):
        report = compare(model, written.form, folder, reporter, max_rows)
    return ExportReport(folder, part.name, written, report)


def read_format(name: str, settings: Mapping[str, Any]) -> Format:
    """A format with its settings.

    Raises:
        RecipeError: there is no such format, no such setting, or a value is impossible.
    """
    fields = find(Format, name).model_fields
    for key in settings:
        if key not in fields:
            raise RecipeError(
                "format {format} has no setting {key!r}.{hint} There are: {known}",
                format=name,
                key=key,
                hint=nearest(key, list(fields)),
                known=", ".join(fields) or "-",
            )
    try:
        return create(Format, name, **settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            "{key}: {value!r} is not possible: {reason}", key=first["loc"][0], value=first["input"], reason=first["msg"]
        ) from None


def source_of(model: Model, target: str, temporary: Path, task: str, reporter: Reporter) -> ExportSource:
    """What a format is given of an opened model."""
    assets, recipe, trained = model.assets, model.recipe, read_trained(target)

    def merge(dtype: str, max_shard_size: str) -> Path:
        if trained is None:
            return assets.folder
        folder = temporary / f"merged-{dtype}-{max_shard_size}"
        with reporter.spin(Message("merging, reloading and comparing")):
            merge_run(target, str(folder), dtype, task, max_rows=MERGE_ROWS, max_shard_size=max_shard_size)
        return folder

    def write_adapter(folder: Path) -> Message | None:
        if recipe is None:
            return Message("there is no adapter: it is no run")
        return write_adapter_folder(model.model, assets, model.objective, recipe, folder)

    with reporter.spin(Message("reading rows")):
        rows = [[int(i) for i in x["input_ids"][:ROW_TOKENS]] for x in islice(_rows(model, reporter), NUM_ROWS)]
    return ExportSource(
        model_name(target),
        assets.folder,
        assets.tokenizer,
        assets.processor.stop_ids,
        assets.architecture.kind,
        merge,
        write_adapter,
        assets.architecture.modality,
        model.objective.plain_form(assets.architecture.kind),
        rows or [assets.processor.text("The quick brown fox jumps over the lazy dog.")],
        assets.system,
        _renderer(model),
        reporter.track,
    )


def model_name(target: str) -> str:
    """A name that servers list and that files can have.

    >>> model_name("runs/my support")
    'my-support'
    """
    name = target.rstrip("/").replace("\\", "/").rpartition("/")[2].rpartition(":")[2].removesuffix(".gguf")
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _rows(model: Model, reporter: Reporter) -> Iterator[Mapping[str, Any]]:
    """Rows as the Run encoded them; none where its files are gone."""
    try:
        for examples in examples_of(model):
            yield from encoded_rows(model, examples, reporter)
    except (DataError, RecipeError, OSError) as error:
        reporter.warn(Message("the run's rows cannot be read, so a probe text is compared: {error}", error=error))


def _renderer(model: Model) -> Callable[[Sequence[tuple[str, str]]], str] | None:
    template = model.assets.processor.template
    if template is None or model.assets.continues_text:
        return None

    def render(turns: Sequence[tuple[str, str]]) -> str:
        return template.render([Turn(role, content) for role, content in turns], ask=True)  # pyright: ignore[reportArgumentType]

    return render


def can_open(format: str, written: Written) -> bool:
    """Whether the package that opens the format is installed; where it is not, the report says how to get it."""
    package = ENGINES.get(format)
    if package is None or importlib.util.find_spec(package) is not None:
        return True
    written.obstacle = Message("it was not opened: pip install 'weitiao[{extra}]', then `weitiao verify`", extra=format)
    return False


def compare(model: Model, form: Path, folder: Path, reporter: Reporter, max_rows: int | None) -> VerificationReport:
    """Open what was written, compare it with what was trained, and write the figures beside it.

    Raises:
        ModelError: it is not the tuned model.
    """
    with muted(), reporter.spin(Message("opening what was written")):
        opened = open_form(str(form), model.assets.folder)
    try:
        report = verify(subject_of(model, reporter, max_rows), opened, str(form), track=reporter.track)
    finally:
        opened.close()
    report.write(folder)
    report.check()
    return report
