"""Files -> Examples. A row that cannot be used is put aside with file, line, byte offset and reason; the rest goes on."""

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from weitiao.core.errors import DataError, InvalidValue, message_of
from weitiao.core.example import AudioText, BadRow, ExtractiveQA, SourcedExample, Task, content_hash
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import find_module, names
from weitiao.data.columns import ColumnMapping
from weitiao.data.mapping import find_mapping
from weitiao.data.records import Reader, Record

LOOKED_AT = 50  # first records that the mapping is found from


@dataclass
class Reading:
    """What the sources gave."""

    examples: list[SourcedExample] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    mappings: dict[str, str] = field(default_factory=dict)
    """File -> the mapping that was chosen, in words."""


def read_sources(sources: Iterable[Source], objective: Objective, max_bad: float) -> Reading:
    """Read every source.

    Args:
        objective: what it eats decides how columns are read.
        max_bad: more than this share of unusable rows stops here.

    Raises:
        DataError: a file is missing, empty or of the wrong kind, or too many rows are bad.
        RecipeError: a source names no task where there are several, or one that is not there.
    """
    reading = Reading()
    for number, source in enumerate(sources):
        for file in files_of(source):
            _read_file(file, source, number, objective.part(source.task).traits.example_type, reading)
    judge(reading.bad, len(reading.bad) + len(reading.examples), max_bad)
    if not reading.examples:
        raise DataError("data: there is not a single row to learn from.")
    return reading


def files_of(source: Source) -> list[Path]:
    """The files that a source means, in a fixed order.

    Raises:
        DataError: there are none.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        endings = {ending for name in names(Reader) for ending in find_module(Reader, name).ENDINGS}
        found = sorted(x for x in path.iterdir() if x.suffix in endings)
    else:
        found = [Path(x) for x in sorted(glob.glob(str(path), recursive=True))]
    if not found:
        raise DataError(f"data: there is no file {source.path}.")
    return found


def reader_of(file: Path, source: Source) -> str:
    """The name of the reader for a file: as asked, or by its ending."""
    if source.format != "auto":
        find_module(Reader, source.format)
        return source.format
    able = [name for name in names(Reader) if file.suffix.lower() in find_module(Reader, name).ENDINGS]
    looks_like = {name: getattr(find_module(Reader, name), "looks_like", None) for name in able}
    for name in sorted(able, key=lambda name: looks_like[name] is None):
        check = looks_like[name]
        if check is None or check(file):
            return name
    known = sorted({ending for name in names(Reader) for ending in find_module(Reader, name).ENDINGS})
    raise DataError(f"data: {file} has an ending nobody reads; known are {', '.join(known)}. Or write format: jsonl.")


def _read_file(file: Path, source: Source, number: int, wanted: type, reading: Reading) -> None:
    if file.stat().st_size == 0:
        raise DataError(f"data: {file} is empty.")
    items = iter(find_module(Reader, reader_of(file, source)).read(file, source.encoding))
    head = list(itertools.islice(items, LOOKED_AT))
    records = [x.fields for x in head if isinstance(x, Record)]
    if not records:
        bad = [x for x in itertools.chain(head, items) if isinstance(x, BadRow)]
        reading.bad += bad
        why = f" First complaint: line {bad[0].where.line}: {bad[0].reason}" if bad else ""
        raise DataError(f"data: {file} has no usable row.{why}")
    mapping = find_mapping(records, wanted, source.columns, str(file))
    reading.mappings[str(file)] = mapping.description
    for item in itertools.islice(_examples(itertools.chain(head, items), mapping, number, source.task), source.limit):
        (reading.bad if isinstance(item, BadRow) else reading.examples).append(item)  # pyright: ignore


def _examples(
    items: Iterable[Record | BadRow], mapping: ColumnMapping, number: int, task: str
) -> Iterator[SourcedExample | BadRow]:
    for item in items:
        if isinstance(item, BadRow):
            yield item
            continue
        try:
            example = mapping.to_example(item)
            words = example.full_text
            words.encode("utf-8")
            if not words.strip():
                raise InvalidValue("the text is empty")
            yield SourcedExample(Task(task, example) if task else example, item.where, number)
        except UnicodeEncodeError:
            yield BadRow(item.where, Message("the text has an unpaired surrogate, which is not a character"))
        except (ValueError, TypeError, IndexError) as error:
            yield BadRow(item.where, message_of(error), str(item.fields)[:200])


def judge(bad: Sequence[BadRow], every: int, max_bad: float) -> None:
    """Stop where more than the allowed share of rows cannot be used.

    Raises:
        TooManyBadRows: naming the first.
    """
    if len(bad) > max_bad * every:
        raise TooManyBadRows(
            f"data: {len(bad)} of {every} rows cannot be used ({100 * len(bad) / every:.1f} %, max_bad_fraction allows "
            f"{100 * max_bad:g} %). First: {bad[0].where}: {bad[0].reason}",
            list(bad),
        )


class TooManyBadRows(DataError):
    """Carries the rows, so that they can be written down before the run stops."""

    def __init__(self, words: str, bad: list[BadRow]) -> None:
        super().__init__(words)
        self.bad = bad


# -- train / validation -----------------------------------------------------------------------------------------------


def split(examples: list[SourcedExample], share: float) -> tuple[list[SourcedExample], list[SourcedExample], str]:
    """Hold out a share, by content: rows that ask the same thing stay on one side, and a row keeps its side when
    data are added.

    The side is decided by the hash of the question (letter case, width and spaces do not count). If one question
    makes up more than a fifth of the rows, it says nothing, and the hash of the whole row decides.

    Rows of several tasks are split task by task.

    Returns:
        (train, validation, how it was decided)
    """
    if share <= 0:
        return examples, [], "validation: 0"
    out, hows = [False] * len(examples), []
    for task in dict.fromkeys(x.task for x in examples):
        mine = [i for i, x in enumerate(examples) if x.task == task]
        try:
            sides, how = _held([examples[i].without_task for i in mine], share)
        except DataError as error:
            raise DataError(f"task {task}: {error}" if task else str(error)) from None
        hows.append(f"{task}: {how}" if task else how)
        for i, side in zip(mine, sides):
            out[i] = side
    return [x for x, side in zip(examples, out) if not side], [x for x, side in zip(examples, out) if side], "; ".join(hows)


def _held(examples: list[SourcedExample], share: float) -> tuple[list[bool], str]:
    """Which are held out, and how it was decided."""
    hashes, how = [content_hash(x.example.input_text) for x in examples], "by the hash of the question"
    if isinstance(examples[0].example, ExtractiveQA):
        hashes, how = [content_hash(x.example.context) for x in examples], "by the hash of the context"  # pyright: ignore
    if isinstance(examples[0].example, AudioText):  # one sentence in several voices is no two sentences
        hashes, how = [content_hash(x.example.answer) for x in examples], "by the hash of what is said"
    counts: dict[str, int] = {}
    for h in hashes:
        counts[h] = counts.get(h, 0) + 1
    if max(counts.values()) > max(1, len(examples) // 5):
        hashes, how = [content_hash(x.example.full_text) for x in examples], "by the hash of the whole row"
    held = {h for h in hashes if int(h[:12], 16) < share * 16**12}
    if not held and len(set(hashes)) > 1:
        held = {min(hashes)}
    if len(held) == len(set(hashes)):
        raise DataError("validation: too few different rows to hold any out. Give more rows, or validation: 0.")
    return [h in held for h in hashes], how
