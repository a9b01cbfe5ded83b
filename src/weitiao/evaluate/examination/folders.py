"""Exams that are published as folders of CSV files, one file a subject: MMLU, C-Eval, CMMLU.

    mmlu     test/anatomy_test.csv   dev/anatomy_dev.csv    no header: question, A, B, C, D, answer
    ceval    val/law_val.csv         dev/law_dev.csv        id, question, A, B, C, D, answer; test has no answers
    cmmlu    test/anatomy.csv        dev/anatomy.csv        (row), Question, A, B, C, D, Answer

The rows have the columns question, A, B, C, D, answer and subject. Solved items are those of the subject in dev.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from weitiao.core.errors import DataError
from weitiao.core.messages import Message
from weitiao.core.registry import nearest
from weitiao.evaluate.examination.items import SourceRow

COLUMNS = ("question", "A", "B", "C", "D", "answer")


def folder_rows(exam: str, folder: Path, layout: str, split: str, subjects: Sequence[str]) -> Iterator[SourceRow]:
    """The rows of a split, subject by subject.

    Args:
        exam: its name, for messages.
        subjects: only these; (): all.

    Raises:
        DataError: there is no such folder or subject, or a row lacks a column.
    """
    files = {_subject(x, split): x for x in sorted((folder / split).glob("*.csv"))}
    if not files:
        raise DataError("exam {exam}: {folder}/{split} has no CSV files.", exam=exam, folder=folder, split=split)
    for subject in subjects:
        if subject not in files:
            raise DataError(
                "exam {exam}: there is no subject {subject!r}.{hint}",
                exam=exam,
                subject=subject,
                hint=nearest(subject, list(files)),
            )
    for subject in subjects or files:
        yield from _rows(exam, files[subject], layout, subject)


def _subject(file: Path, split: str) -> str:
    return file.stem.removesuffix(f"_{split}")


def _rows(exam: str, file: Path, layout: str, subject: str) -> Iterator[SourceRow]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened)
        header = list(COLUMNS) if layout == "mmlu" else [x.strip() for x in next(reader, [])]
        names = {"Question": "question", "Answer": "answer"}
        for values in reader:
            fields = {names.get(key, key): x for key, x in zip(header, values)}
            where = Message("{file}, line {line}", file=str(file), line=reader.line_num)
            if missing := [x for x in COLUMNS if not fields.get(x, "").strip()]:
                raise DataError(
                    "exam {exam}: {where}: no {columns}; the layout {layout} has {known}.",
                    exam=exam,
                    where=where,
                    columns=", ".join(missing),
                    layout=layout,
                    known=", ".join(header),
                )
            yield SourceRow(str(where), {**fields, "subject": subject, "subject_name": subject.replace("_", " ")})
