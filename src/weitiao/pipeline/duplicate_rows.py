"""Rows of a cleaned folder that are there already: they move from rows.jsonl to duplicates.jsonl, with the row that they
are copies of. Over all shards at once, so that the result does not depend on them.

Two rows are duplicates if their texts are equal (letter case, width, spaces, traditional or simplified characters do not
count) or, for `near`, similar, and if what is learnt besides is the same: a text with two labels is a contradiction, not a
copy.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.data.columns import ColumnMapping
from weitiao.data.duplicates.clusters import Clusters, find_duplicates
from weitiao.data.text_parts import text_parts
from weitiao.pipeline.cleaned_folder import DUPLICATES, PLACES, ROWS, Balance, json_line, load_places


def move_duplicates(
    folder: Path, mapping: ColumnMapping, files: list[str], near: bool, similarity: float, balance: Balance
) -> int:
    """Move the duplicates of a folder, and count them.

    Args:
        files: the names of the files that its places count.
        near: also rows that are only similar.
        similarity: Jaccard similarity of n-grams, from which rows are similar.

    Returns:
        Rows that could not be compared with all candidates, since very many agreed.
    """
    clusters = find_duplicates(_texts(folder, mapping), similarity)
    originals = _originals(folder, mapping, clusters, near)
    is_equal = clusters.first_equal == clusters.first_equal[originals]
    positions = load_places(folder)
    stays = np.ones(len(positions), bool)
    paths = [folder / f".{os.getpid()}.{name}" for name in (ROWS, DUPLICATES)]
    with (
        open(folder / ROWS, encoding="utf-8", newline="\n") as old,
        open(paths[0], "w", encoding="utf-8", newline="\n") as rows,
        open(paths[1], "w", encoding="utf-8", newline="\n") as duplicates,
    ):
        for i, line in enumerate(old):
            first = int(originals[i])
            if first == i:
                rows.write(line)
                continue
            stays[i] = False
            here, there = positions[i], positions[first]
            record = {"file": files[here["file"]], "line": int(here["line"]), "row": json.loads(line)}
            copy_of = {"file": files[there["file"]], "line": int(there["line"])}
            duplicates.write(json_line({**record, "copy_of": copy_of, "equal": bool(is_equal[i])}))
            balance.move("repaired" if here["repaired"] else "accepted", "duplicate", int(here["bytes"]))
    os.replace(paths[0], folder / ROWS)
    os.replace(paths[1], folder / DUPLICATES)
    np.save(folder / PLACES, positions[stays])
    return clusters.capped


def _originals(folder: Path, mapping: ColumnMapping, clusters: Clusters, near: bool) -> np.ndarray:
    """(rows,) the row that each is a copy of; its own index for one that stays.

    For `near` the first row of the cluster, otherwise (or if what is learnt differs there) the first equal row.
    """
    originals = np.arange(len(clusters.first))
    firsts = clusters.first if near else clusters.first_equal
    is_member = np.isin(firsts, firsts[firsts != originals])
    earliest: dict[tuple[int, str], int] = {}  # (first equal row, what is learnt) -> the first such row
    learnt: dict[int, str] = {}
    for i, row in enumerate(_rows(folder)):
        if not is_member[i]:
            continue
        first, text = int(firsts[i]), json.dumps(_learnt(row, mapping), sort_keys=True, default=str)
        if first == i:
            learnt[i] = text
        copy = earliest.setdefault((int(clusters.first_equal[i]), text), i)
        originals[i] = first if learnt[first] == text else copy
    return originals


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    with open(folder / ROWS, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def _texts(folder: Path, mapping: ColumnMapping) -> Iterator[str]:
    for row in _rows(folder):
        yield "\n".join(x.text for x in text_parts(row, mapping)) or json.dumps(_learnt(row, mapping), default=str)


def _learnt(row: Mapping[str, Any], mapping: ColumnMapping) -> list[Any]:
    """The columns that are read and that are no texts: labels, numbers, tools."""
    return [row.get(name) for name in mapping.reads if name not in mapping.texts]
