"""Rows encoded by several processes: the same rows in the same order, the same errors, and nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.models import CHATML, make_tokenizer
from weitiao.core.errors import DataError
from weitiao.core.example import Chat, SourcedExample, SourceLocation, Turn
from weitiao.core.files import home
from weitiao.data import encoding_processes
from weitiao.data.encode import Encoded, encode
from weitiao.data.encoding_processes import PROCESSES, num_processes
from weitiao.data.row_file import CHUNK
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.sft import SFT

COUNT = 3 * CHUNK + 100


class Private(SFT):
    """An objective that no other process can import."""


Private.__module__ = "nowhere"


def examples(count: int = COUNT) -> list[SourcedExample]:
    """Conversations of different lengths; some spell control tokens, one has a noncharacter, every tenth is long."""
    rows = []
    for i in range(count):
        question = "\ufdd0" if i == CHUNK + 5 else "What is <|im_end|>?" if i % 7 == 0 else f"Say {i}."
        answer = f"{i} " * (80 if i % 10 == 9 else 1 + i % 5)
        turns = (Turn("user", question), Turn("assistant", answer))
        rows.append(SourcedExample(Chat(turns), SourceLocation("rows.jsonl", i + 1, 10 * i), source=i // CHUNK))
    return rows


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets how many processes encode; this one waits for them, so that they have all of the work."""
    started = encoding_processes._Pool.is_ready

    def is_ready(pool: Any) -> bool:
        until = time.monotonic() + 120
        while not started(pool) and pool._state == "starting" and time.monotonic() < until:
            time.sleep(0.02)
        return started(pool)

    monkeypatch.setattr(encoding_processes._Pool, "is_ready", is_ready)
    yield lambda count: monkeypatch.setenv(PROCESSES, str(count))
    assert not children(), "a process is left"


def children() -> list[psutil.Process]:
    return [x for x in psutil.Process().children(recursive=True) if "encoding_processes" in " ".join(x.cmdline())]


def encoded(rows: list[SourcedExample], overlong: str = "truncate", objective: Any = None, **more: Any) -> Encoded:
    for file in (home() / "encoded").glob("*"):
        file.unlink()
    processor = ChatProcessor.make(make_tokenizer(CHATML))
    return encode(rows, objective or SFT(), processor, "x", 64, overlong, **more)


def content(x: Encoded) -> tuple[Any, ...]:
    return x.rows.table.to_pydict(), x.bad, x.truncated, x.dropped, x.split, x.notes, x.lost, x.rows.fingerprint


@pytest.mark.parametrize("overlong", ["truncate", "drop", "drop_turns", "split"])
def test_same_rows_with_any_number_of_processes(overlong: str, processes: Any) -> None:
    processes(1)
    alone = content(encoded(examples(), overlong))
    assert len(alone[0]["line"]) > COUNT // 2
    if overlong == "drop_turns":  # and the rows whose only exchange is too long
        assert {x.reason.template[:35] for x in alone[1]} == {
            "the text has a noncharacter (U+FDD0",
            "{n} answers fit into no row: with t",
        }
    else:
        assert len(alone[1]) == 1 and alone[1][0].where.line == CHUNK + 6, "the row with the noncharacter"
    for count in (2, 3):
        processes(count)
        assert content(encoded(examples(), overlong)) == alone


def test_first_row_that_is_too_long_is_named(processes: Any) -> None:
    messages = []
    for count in (1, 2):
        processes(count)
        with pytest.raises(DataError) as raised:
            encoded(examples(), "error")
        messages.append(str(raised.value))
    assert messages[0] == messages[1] and "rows.jsonl, line 10, byte 90" in messages[0]
    assert not list((home() / "encoded").glob("*"))


def test_process_that_dies(processes: Any) -> None:
    processes(2)

    def kill_one(items: list[Any], _: str) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i == CHUNK + 1:
                children()[0].kill()
            yield item

    with pytest.raises(DataError, match=f"ended too early.*{PROCESSES}=1"):
        encoded(examples(20 * CHUNK), progress=kill_one)
    assert not list((home() / "encoded").glob("*")), "an incomplete file"


def test_ctrl_c(processes: Any) -> None:
    processes(2)

    def interrupt(items: list[Any], _: str) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i == 2 * CHUNK + 1:
                assert len(children()) == 2
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        encoded(examples(), progress=interrupt)
    assert not list((home() / "encoded").glob("*"))


def test_objective_of_the_user_is_encoded_here(processes: Any) -> None:
    processes(1)
    alone = content(encoded(examples(CHUNK + 10)))
    processes(2)
    private = content(encoded(examples(CHUNK + 10), objective=Private()))
    assert private[0] == alone[0]


def is_running(process: psutil.Process) -> bool:
    """A process that has ended may be a zombie, where nobody waits for it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_processes_end_with_this_one(tmp_path: Path) -> None:
    """Also when it is killed. Its script has no `if __name__ == "__main__"`: it is not run again in the others."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time
        sys.path[:] = {sys.path!r}
        print("started", flush=True)
        from unit.data.test_encoding_processes import encoding_processes, examples, encoded
        def slowly(items, _):
            for i, item in enumerate(items):
                time.sleep(0.05)
                yield item
        encoded(examples(), progress=slowly)
        """)
    )
    environment = {**os.environ, PROCESSES: "2", "WEITIAO_HOME": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True) as parent:
        own: list[psutil.Process] = []
        while len(own) < 2 and parent.poll() is None:
            own = psutil.Process(parent.pid).children(recursive=True)
            time.sleep(0.05)
        parent.send_signal(signal.SIGKILL)
        assert parent.communicate()[0].count("started") == 1
    until = time.monotonic() + 30
    while any(map(is_running, own)) and time.monotonic() < until:
        time.sleep(0.1)
    assert len(own) == 2 and not any(map(is_running, own))


def test_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROCESSES, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert num_processes(100) == 1 and num_processes(1_000_000) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert num_processes(1_000_000) == 2
    monkeypatch.setenv(PROCESSES, "3")
    assert num_processes(100) == 3
    for wrong in ("0", "many", "-1", "2.5"):
        monkeypatch.setenv(PROCESSES, wrong)
        with pytest.raises(DataError, match=f"{PROCESSES}={wrong}: write how many"):
            num_processes(100)
