"""Checks of class names: one class in several spellings, classes that mean "no class", and what `limit` leaves out."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from weitiao.core.class_names import folded
from weitiao.core.errors import DataError
from weitiao.core.example import Example, SourcedExample, TextLabel, TokenTags
from weitiao.core.finding import Finding
from weitiao.core.messages import Message, joined

MAX_NAMED = 5  # groups of spellings, or classes, that are named
SEPARATORS = r"[,;|/、，；]"  # between classes in one cell
LOOK_AHEAD = 20_000  # rows behind `limit` whose classes are looked at
NO_CLASS = {
    "-1", "-100", "?", "-", "unknown", "n/a", "na", "none", "nan", "null", "unlabeled", "unlabelled", "undefined",
    "未知", "未标注", "无标签",
}  # fmt: skip


def classes_of(example: Example) -> tuple[str, ...]:
    """The classes of a row; of tags, the types of its entities."""
    if isinstance(example, TextLabel):
        return example.labels
    if isinstance(example, TokenTags):
        return tuple({tag.partition("-")[2] or tag for tag in example.tags} - {"O"})
    return ()


def check_labels(training: Sequence[SourcedExample], held_out: Sequence[SourcedExample]) -> Iterator[Finding]:
    """Spellings and "no class" among the classes, by task."""
    for task in dict.fromkeys(x.task for x in training):
        counts, all_counts = (
            Counter(name for x in rows if x.task == task for name in classes_of(x.without_task.example))
            for rows in (training, [*training, *held_out])
        )
        if not counts:
            continue
        yield _spellings(all_counts)
        yield from _several_in_one(counts)
        if len(counts) == 2 and set(counts) == {"-1", "1"}:
            continue
        if missing := [name for name in counts if name.casefold() in NO_CLASS]:
            total = sum(x.task == task for x in training)
            rows = [Message("{name!r} ({n:,} of {total:,} rows)", name=x, n=counts[x], total=total) for x in missing]
            message = Message(
                "{n} of {total} classes usually mean that a row has no class: {classes}. If they do, remove these rows",
                n=len(missing),
                total=len(counts),
                classes=joined(", ", rows[:MAX_NAMED]),
            )
            yield Finding("missing_class", "warning", message)


def _spellings(counts: Counter[str]) -> Finding:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(counts):
        groups[folded(name)].append(name)
    several = [names for names in groups.values() if len(names) > 1]
    if not several:
        return Finding("class_names", "fine", Message("{n:,} classes, no two of them alike", n=len(counts)))
    groups_named = joined("; ", [", ".join(f"{x!r} ({counts[x]:,})" for x in names) for names in several[:MAX_NAMED]])
    message = Message(
        "{n} classes, but these differ only in case, width, invisible characters or the spelling of a number: {groups}. "
        "Write each class in one way",
        n=len(counts),
        groups=groups_named,
    )
    return Finding("class_names", "error", message)


def _several_in_one(counts: Counter[str]) -> Iterator[Finding]:
    """Classes that are made of others: "sport, politics" where sport and politics are classes too."""
    parts_of = {name: [x.strip() for x in re.split(SEPARATORS, name)] for name in counts}
    several = [name for name, parts in parts_of.items() if len(parts) > 1 and all(x in counts for x in parts)]
    if several:
        message = Message(
            '{n} of {total} classes are made of others ({classes}): several classes in one cell? Write a list: ["a", "b"]',
            n=len(several),
            total=len(counts),
            classes=", ".join(map(repr, several[:MAX_NAMED])),
        )
        yield Finding("class_names", "warning", message)


def refuse_missing_classes(held_out: Sequence[SourcedExample]) -> None:
    """Refuse a file to evaluate on in which every row has the class that means "no class".

    Raises:
        DataError: naming the class.
    """
    examples = [x.without_task.example for x in held_out]
    names = {label for x in examples if isinstance(x, TextLabel) for label in x.labels}
    if len(names) == 1 and min(names).casefold() in NO_CLASS and all(classes_of(x) for x in examples):
        raise DataError(
            "held-out rows: no row has a class: all {n:,} rows say {label!r}, in {file}",
            n=len(examples),
            label=min(names),
            file=held_out[0].where.file,
        )


def check_limit(file: str, used: Sequence[Example], rest: Iterator[Example]) -> Iterator[Finding]:
    """Classes that `limit` leaves out because the file is ordered by class."""
    present = {name for x in used for name in classes_of(x)}
    behind = Counter(name for x in itertools.islice(rest, LOOK_AHEAD) for name in classes_of(x))
    missing = [name for name in behind if name not in present]
    if present and missing:
        message = Message(
            "{file}: limit takes the first {n:,} rows, and they have no row of {classes}. Is the file ordered by class? "
            "Shuffle it first",
            file=file,
            n=len(used),
            classes=", ".join(f"{name!r} ({behind[name]:,})" for name in missing[:MAX_NAMED]),
        )
        yield Finding("limit", "warning", message)
