"""Chunks of examples encoded by this process, or by one process for each core; the rows and their order are the same.

    this process   pickled examples -> stdin                 stdout -> rows as an Arrow stream, and facts
    process 1      chunk 0                chunk 2             chunk 4 ...
    process 2                chunk 1                chunk 3   ...

Chunk i goes to process i modulo their number, and replies are read in that order. The processes are started from this
module and not by multiprocessing, which would run the user's own script again in each of them.
"""

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import fields
from io import BytesIO
from itertools import islice
from operator import attrgetter
from typing import IO, Any

import pyarrow as pa

from weitiao.core import example
from weitiao.core.errors import DataError, WeitiaoError
from weitiao.core.example import SourcedExample
from weitiao.data.row_file import CHUNK, table_of
from weitiao.data.row_maker import Facts, RowMaker

PROCESSES = "WEITIAO_ENCODE_PROCESSES"  # environment variable: how many; 1: none but this one
MIN_EXAMPLES = 20_000  # below, this process is done before others have imported torch
AHEAD = 3  # chunks that wait in each process
READY, ROWS, REFUSED, FAILED = "ready", "rows", "refused", "failed"
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
Chunk = tuple[pa.Table, Facts]


def encoded_chunks(maker: RowMaker, items: Iterator[SourcedExample], total: int) -> Iterator[Chunk]:
    """The rows of all examples, chunk by chunk, in order.

    Args:
        items: the examples; taken as they are needed.
        total: how many there are.

    Raises:
        DataError: a row is too long and `overlong` is error, or a process ended too early.
    """
    count = min(num_processes(total), -(-total // CHUNK))
    processes = _started(maker, count) if count > 1 else []
    if not processes:
        for _ in range(-(-total // CHUNK)):
            rows, facts = maker.rows(islice(items, CHUNK))
            yield table_of(rows), facts
        return
    try:
        waiting: deque[_Process] = deque()
        for i in range(-(-total // CHUNK)):
            if len(waiting) == AHEAD * count:
                yield waiting.popleft().reply()
            processes[i % count].send(_pickled(list(islice(items, CHUNK))))
            waiting.append(processes[i % count])
        while waiting:
            yield waiting.popleft().reply()
    finally:
        for process in processes:
            process.stop()


def num_processes(total: int) -> int:
    """How many processes encode this many examples: one for each core, shared among the processes that train together."""
    if own := os.environ.get(PROCESSES, ""):
        return max(1, int(own)) if own.isdecimal() else 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if total >= MIN_EXAMPLES else 1


def _started(maker: RowMaker, count: int) -> list["_Process"]:
    """The processes; none if they cannot have what makes the rows, such as an objective in a file of the user's."""
    try:
        message = pickle.dumps(maker, pickle.HIGHEST_PROTOCOL)
    except Exception:  # whatever an object of somebody else's raises
        return []
    processes = [_Process() for _ in range(count)]
    try:
        for process in processes:
            process.send(message)
        if all(process.receive()[0] == READY for process in processes):
            return processes
    except DataError:  # one ended at once
        pass
    except BaseException:
        for process in processes:
            process.stop()
        raise
    for process in processes:
        process.stop()
    return []


class _Process:
    """One process that encodes, and its pipes. It ends with its standard input, so also when this one is killed."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self.child = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **ALONE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            start_new_session=True,  # Ctrl-C is for this process, which stops the others
        )

    def send(self, message: bytes) -> None:
        try:
            _write(self._pipe(self.child.stdin), message)
        except OSError:
            raise self._ended() from None

    def receive(self) -> Any:
        if (message := _read(self._pipe(self.child.stdout))) is None:
            raise self._ended()
        return pickle.loads(message)

    def reply(self) -> Chunk:
        """The rows of the earliest chunk that was sent and not yet replied to.

        Raises:
            DataError: as in this process.
        """
        kind, *content = self.receive()
        if kind == ROWS:
            return pa.ipc.open_stream(content[0]).read_all(), content[1]
        if kind == REFUSED:
            raise content[0](content[1])
        raise RuntimeError(f"encoding failed in a process of its own:\n{content[0]}")

    def stop(self) -> None:
        self.child.kill()
        self.child.wait()
        for stream in (self.child.stdin, self.child.stdout, self.log):
            try:
                self._pipe(stream).close()
            except BrokenPipeError:
                continue

    def _pipe(self, stream: IO[bytes] | None) -> IO[bytes]:
        assert stream is not None, "all are pipes"
        return stream

    def _ended(self) -> DataError:
        code = self.child.wait()
        self.log.seek(0)
        last = self.log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return DataError(
            "data: a process that encoded rows ended too early (exit code {code}{last}). If memory was short, let fewer "
            "encode: {variable}=1",
            code=code,
            last=f": {last[0][:200]}" if last else "",
            variable=PROCESSES,
        )


def main() -> None:
    """What a process does: read a RowMaker, then chunks of examples; reply to each with its rows."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    messages: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        while (message := _read(sys.stdin.buffer)) is not None:
            messages.put(message)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    try:
        maker: RowMaker = pickle.loads(messages.get())
    except Exception as error:  # a class that only the other process has
        _write(out, pickle.dumps((FAILED, repr(error))))
        return
    _write(out, pickle.dumps((READY,)))
    while True:
        _write(out, pickle.dumps(_replied(maker, messages.get()), pickle.HIGHEST_PROTOCOL))


def _replied(maker: RowMaker, message: bytes) -> tuple[Any, ...]:
    try:
        rows, facts = maker.rows(pickle.loads(message))
    except WeitiaoError as error:
        return REFUSED, type(error), error.message
    except Exception:  # a defect: shown by the process that trains
        import traceback

        return FAILED, traceback.format_exc()
    table, sink = table_of(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return ROWS, sink.getvalue().to_pybytes(), facts


# -- messages: eight bytes of length, then the content ------------------------------------------------------------------


def _write(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(8, "little"))
    stream.write(message)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes | None:
    """The next message; None at the end."""
    head = stream.read(8)
    size = int.from_bytes(head, "little")
    message = stream.read(size) if len(head) == 8 else b""
    return message if len(head) == 8 and len(message) == size else None


def _reducer(kind: type) -> Any:
    """How pickle takes a small frozen type apart: by the constructor, which is four times as fast as by its state."""
    names = [x.name for x in fields(kind)]
    take = attrgetter(*names)
    return (lambda x: (kind, take(x))) if len(names) > 1 else (lambda x: (kind, (take(x),)))


class _Pickler(pickle.Pickler):
    """Pickles examples."""

    dispatch_table = {
        kind: _reducer(kind)
        for kind in vars(example).values()
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__") and kind.__module__ == example.__name__
    }


def _pickled(examples: Sequence[SourcedExample]) -> bytes:
    stream = BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(examples)
    return stream.getvalue()
