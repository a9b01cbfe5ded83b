"""What a recipe says of its training files holds for the files that come later: validation, replay, `evaluate --data`,
`predict --input`. Columns, encoding and format are theirs, unless the later file has its own.

    data: {path: train.csv, columns: {text: body, label: topic}, encoding: gb18030}
    weitiao evaluate RUN --data test.csv         reads body and topic; as gb18030, unless the file is UTF-8
"""

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module
from weitiao.data.encodings import encoding_of
from weitiao.data.read import INFERENCE_ROWS, file_endings, files_of, reader_of
from weitiao.data.records import Reader, Record
from weitiao.data.unpacking import ending_of

AUTO = "auto"
ANSWERS = {  # in `columns`
    "answers", "completion", "document", "entities", "label", "negatives", "score", "seen", "tags", "target",
}  # fmt: skip


def with_settings_of(source: Source, training: Sequence[Source], has_answers: bool = True, strict: bool = False) -> Source:
    """A later source with the settings of the training sources of its task.

    Args:
        has_answers: False: it is to be predicted, so that columns with answers may be missing.
        strict: it gets their columns even where it has none of them, so that reading it is an error.
    """
    if source.rows is not None:
        return source
    earlier = [x for x in training if x.task == source.task and x.path != source.path]
    changes: dict[str, object] = {}
    if source.format == AUTO and (kind := _format(source, earlier)):
        changes["format"] = kind
    if source.encoding == AUTO and (encoding := _encoding(source, earlier)):
        changes["encoding"] = encoding
    source = source.model_copy(update=changes)
    named = [x.columns for x in earlier if x.columns]
    if source.columns is None and named:
        columns = _that_fit(named, _first_columns(source), has_answers)
        if columns is not None or (strict and len(named) == len(earlier)):  # else some had their columns inferred
            source = source.model_copy(update={"columns": columns or named[0]})
    return source


def _format(source: Source, earlier: Sequence[Source]) -> str | None:
    """The training files' format, for a file with the same ending, or with one that no reader knows."""
    endings = {ending_of(Path(x.path)): x.format for x in earlier if x.format != AUTO}
    ending = ending_of(Path(source.path))
    return endings.get(ending, next(iter(endings.values()), None) if ending and ending not in file_endings() else None)


def _encoding(source: Source, earlier: Sequence[Source]) -> str | None:
    """The training files' encoding, unless the file is UTF-8 throughout."""
    encodings = [x.encoding for x in earlier if x.encoding != AUTO]
    return encodings[0] if encodings and not all(is_utf8(file) for file in files_of(source)) else None


def is_utf8(file: Path) -> bool:
    """Whether every byte of a file is that of UTF-8 text."""
    proven = encoding_of(file)
    return proven.codec.startswith("utf-8") and not proven.is_mixed


def trained_columns(training: Sequence[Source], task: str, present: Collection[str]) -> dict[str, str] | None:
    """The columns of the training sources of a task, for rows to predict; where none fit, the first ones."""
    earlier = [x for x in training if x.task == task]
    named = [x.columns for x in earlier if x.columns]
    fitting = _that_fit(named, present, has_answers=False)
    return fitting or (named[0] if named and len(named) == len(earlier) else None)


def _that_fit(named: Sequence[dict[str, str]], present: Collection[str], has_answers: bool) -> dict[str, str] | None:
    """The first columns that are all present."""
    for columns in named:
        answers = () if has_answers else {*ANSWERS, "text"} if "audio" in columns else ANSWERS
        if all(name in present for target, name in columns.items() if target not in answers):
            return columns
    return None


def _first_columns(source: Source) -> set[str]:
    """The columns of the first rows of a source."""
    present: set[str] = set()
    for file in files_of(source)[:1]:
        items = iter(find_module(Reader, reader_of(file, source)).read(file, source.encoding))
        for item in itertools.islice(items, INFERENCE_ROWS):
            present |= set(item.fields) if isinstance(item, Record) else set()
    return present
