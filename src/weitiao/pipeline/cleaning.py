"""`weitiao data clean` and `join`: shards by any number of processes, then one folder of them.

A finished shard is kept, so that a command that was stopped or killed goes on where it was. What `join` writes depends on
the files, the rules and what is done with duplicates, not on the number of shards or on their order.
"""

import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from weitiao.core.errors import INTERRUPTED, DataError, Interrupted
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.data.cleaning import RuleCounts
from weitiao.data.duplicates.clusters import SIMILARITY
from weitiao.pipeline.cleaned_folder import (
    AUDIT,
    DUPLICATES,
    EXAMPLES,
    PLACES,
    QUARANTINE,
    REPORT,
    ROWS,
    SHARDS,
    Balance,
    FolderWriter,
    load_places,
    read_counts,
    write_counts,
)
from weitiao.pipeline.cleaning_plan import CleaningPlan, CleaningRequest, make_plan
from weitiao.pipeline.cleaning_report import cleaning_report
from weitiao.pipeline.cleaning_shard import clean_shard, shard_folder, write_rows
from weitiao.pipeline.duplicate_rows import move_duplicates

SHARD_BYTES = 1 << 24  # of files that one process does at a time, and that are lost when it is killed
PLAN = "plan.json"


@dataclass(frozen=True)
class Duplicates:
    """What is done with rows that are there already."""

    near: bool
    """Also rows that are only similar."""
    similarity: float = SIMILARITY
    """Jaccard similarity of n-grams, from which rows are similar."""

    def as_json(self) -> dict[str, Any]:
        return {"near": self.near, "similarity": self.similarity}


def clean(
    request: CleaningRequest, out: Path, processes: int, reporter: Reporter, duplicates: Duplicates | None = None
) -> dict[str, Any]:
    """Clean all files into a folder; the shards that an earlier command finished are not done again.

    Args:
        duplicates: None: they stay.

    Returns:
        The counts, as counts.json has them.

    Raises:
        DataError: the folder holds something else, or the files cannot be read.
        Interrupted: Ctrl-C; the finished shards are kept.
    """
    plan = make_plan(request)
    counts = read_counts(out)
    wish = duplicates and duplicates.as_json()
    if counts is not None and (counts["identity"], counts["duplicates"]) == (plan.identity, wish):
        reporter.say(Message("{folder} is finished already: the same files, rules and settings", folder=out))
        return counts
    shards = max(1, -(-plan.size // SHARD_BYTES))
    prepare_folder(out, plan, shards)
    waiting = [x for x in range(1, shards + 1) if read_counts(shard_folder(out, x, shards)) is None]
    if len(waiting) < shards:
        reporter.say(Message("{n} of {total} shards are there already", n=shards - len(waiting), total=shards))
    try:
        _run(request, out, waiting, shards, processes, reporter)
    except KeyboardInterrupt as interrupt:
        done = sum(read_counts(shard_folder(out, x, shards)) is not None for x in range(1, shards + 1))
        raise Interrupted(
            "stopped: {n} of {total} shards are finished and kept in {folder}. The same command goes on from there.",
            exit_code=next(iter(interrupt.args), INTERRUPTED),
            n=done,
            total=shards,
            folder=out,
        ) from None
    counts = join(out, duplicates)
    shutil.rmtree(out / SHARDS)
    return counts


def _run(
    request: CleaningRequest, out: Path, waiting: Sequence[int], shards: int, processes: int, reporter: Reporter
) -> None:
    if min(processes, len(waiting)) < 2:
        for number in reporter.track(waiting, Message("cleaning")):
            clean_shard(request, out, number, shards)
        return
    pool = ProcessPoolExecutor(min(processes, len(waiting)), get_context("spawn"))
    try:
        futures = [pool.submit(clean_shard, request, out, number, shards) for number in waiting]
        finished = as_completed(futures)
        for _ in reporter.track(futures, Message("cleaning")):
            next(finished).result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prepare_folder(out: Path, plan: CleaningPlan, shards: int) -> None:
    """A folder for shards of one plan.

    Raises:
        DataError: there is something else in it.
    """
    mark = out / SHARDS / PLAN
    if not mark.exists():
        if out.exists() and (out.is_file() or any(x.name != SHARDS for x in out.iterdir())):
            raise DataError("{folder} is not empty. Name a folder that does not exist yet.", folder=out)
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_text(mark, f"{plan.identity} {shards}\n")
    earlier = mark.read_text(encoding="utf-8").split()
    if earlier != [plan.identity, str(shards)]:
        raise DataError(
            "{folder} has shards of other files, rules or settings, or another number of them ({n}). Name another folder, "
            "or remove this one.",
            folder=out,
            n=earlier[-1] if earlier else "?",
        )


def try_out(request: CleaningRequest) -> dict[str, Any]:
    """What cleaning would do: the counts and the examples, and nothing is written."""
    plan = make_plan(request)
    with FolderWriter(None) as writer:
        write_rows(plan, (0, plan.size), writer)
    writer.balance.check(sum(x.size for x in plan.files if x.by_line))
    return {**plan.as_json(), **writer.counts()}


def join(out: Path, duplicates: Duplicates | None = None) -> dict[str, Any]:
    """Put the shards of a folder together, in their order.

    Args:
        duplicates: None: they stay.

    Returns:
        The counts.

    Raises:
        DataError: there are no shards, some are missing, or the counts do not balance.
    """
    folders, counts = _finished(out)
    balance, rules = Balance(), RuleCounts()
    examples: dict[str, list[dict[str, Any]]] = {}
    for x in counts:
        balance.merge(Balance.from_json(x))
        rules.merge(RuleCounts.from_json(x["rules_rows"], x["rules"]))
        for rule, records in x["examples"].items():
            examples[rule] = [*examples.get(rule, []), *records][:EXAMPLES]
    size = sum(x["size"] for x in counts[0]["files"] if x["by_line"])
    balance.check(size)
    for name in (ROWS, QUARANTINE, AUDIT):
        _concatenate([x / name for x in folders], out / name)
    np.save(out / PLACES, np.concatenate([load_places(x) for x in folders]))
    new = {key: counts[0][key] for key in ("identity", "request", "columns", "files", "cleaners")}
    (out / DUPLICATES).unlink(missing_ok=True)
    if duplicates is not None:
        first = make_plan(CleaningRequest(tuple(new["request"]["sources"]), new["request"]["objective"])).files[0]
        names = [x["file"] for x in new["files"]]
        new["capped"] = move_duplicates(out, first.mapping, names, duplicates.near, duplicates.similarity, balance)
        balance.check(size)
    new["duplicates"] = duplicates and duplicates.as_json()
    new |= {**balance.as_json(), "rules": rules.as_json(), "rules_rows": rules.rows, "examples": examples}
    write_text(out / REPORT, cleaning_report(new))
    write_counts(out, new)
    return new


def _finished(out: Path) -> tuple[list[Path], list[dict[str, Any]]]:
    """The folders of all shards, in their order, and their counts.

    Raises:
        DataError: there are none, or some are missing.
    """
    mark = out / SHARDS / PLAN
    if not mark.exists():
        raise DataError("{folder} has no shards: weitiao data clean ... --out {folder} --shard 1/4 makes them.", folder=out)
    identity, number = mark.read_text(encoding="utf-8").split()
    folders = [shard_folder(out, x, int(number)) for x in range(1, int(number) + 1)]
    counts = [read_counts(x) for x in folders]
    missing = [str(i) for i, x in enumerate(counts, 1) if x is None or x["identity"] != identity]
    if missing:
        raise DataError(
            "{folder}: {n} of {total} shards are missing: {missing}. Run them with --shard {first}/{total}.",
            folder=out,
            n=len(missing),
            total=number,
            missing=", ".join(missing[:20]) + (" ..." if len(missing) > 20 else ""),
            first=missing[0],
        )
    return folders, [x for x in counts if x is not None]


def _concatenate(parts: Sequence[Path], path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as new:
        for part in parts:
            with open(part, "rb") as file:
                shutil.copyfileobj(file, new)
    os.replace(temporary, path)
