"""Chunks of examples encoded by this process, or by one process for each core; the rows and their order are the same.

    this process   pickled examples ->                       <- rows as an Arrow stream, and facts
    process 1      chunk 0                chunk 2             chunk 4 ...
    process 2                chunk 1                chunk 3   ...

The chunks go to the processes in turn, and replies are read in that order. One process is started, as a program of its
own, and imports what is needed, which takes seconds: until then this process encodes. On Linux the others are forks of it,
which share its memory. multiprocessing would run the user's own script again, or fork this process with its threads.
"""

import gc
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from io import BytesIO
from itertools import islice
from operator import attrgetter
from typing import IO, Any, cast

import pyarrow as pa

from weitiao.core import example
from weitiao.core.errors import DataError, WeitiaoError
from weitiao.core.example import SourcedExample
from weitiao.data.row_file import CHUNK, table_of
from weitiao.data.row_maker import Facts, RowMaker

PROCESSES = "WEITIAO_ENCODE_PROCESSES"  # environment variable: how many; 1: none but this one
MIN_EXAMPLES = 20_000  # below, this process is done before others have imported what they need
AHEAD = 3  # chunks that wait in each process
STARTING, READY, ROWS, REFUSED, FAILED = "starting", "ready", "rows", "refused", "failed"
ALONE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
Chunk = tuple[pa.Table, Facts]


def encoded_chunks(maker: RowMaker, items: Iterator[SourcedExample], total: int) -> Generator[Chunk, None, None]:
    """The rows of all examples, chunk by chunk, in order.

    Args:
        items: the examples; taken as they are needed.
        total: how many there are.

    Raises:
        DataError: a row is too long and `overlong` is error, or a process ended too early.
    """
    num_chunks = -(-total // CHUNK)
    count = min(num_processes(total), num_chunks)
    pool = _Pool.of(maker, count) if count > 1 else None
    waiting: deque[int] = deque()
    try:
        for i in range(num_chunks):
            examples = list(islice(items, CHUNK))
            if pool is None or not pool.is_ready():
                rows, facts = maker.rows(examples)
                yield table_of(rows), facts
                continue
            if len(waiting) == AHEAD * count:
                yield pool.reply(waiting.popleft())
            pool.send(i % count, _pickled(examples))
            waiting.append(i % count)
        while pool is not None and waiting:
            yield pool.reply(waiting.popleft())
        for _ in items:  # none: but now a bar knows that it is complete
            pass
    finally:
        if pool is not None:
            pool.stop()


def num_processes(total: int) -> int:
    """How many processes encode this many examples: one for each core, shared among the processes that train together.

    Raises:
        DataError: the environment variable is no number.
    """
    if not hasattr(socket, "socketpair") or os.name == "nt":  # a socket cannot be handed over there
        return 1
    if own := os.environ.get(PROCESSES, ""):
        if not own.isdecimal() or not int(own):
            raise DataError("{name}={value}: write how many processes encode, as in {name}=2", name=PROCESSES, value=own)
        return int(own)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if total >= MIN_EXAMPLES else 1


class _Pool:
    """The processes that encode, and a socket to each. They end when theirs is closed, so also when this one is killed."""

    def __init__(self, message: bytes, count: int) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        pairs = [socket.socketpair() for _ in range(count)]
        self.sockets = [own for own, _ in pairs]
        self.streams = [cast(IO[bytes], own.makefile("rwb")) for own, _ in pairs]
        groups = [[theirs] for _, theirs in pairs] if sys.platform != "linux" else [[theirs for _, theirs in pairs]]
        self.children = [self._child(message, [x.fileno() for x in group]) for group in groups]
        for _, theirs in pairs:
            theirs.close()
        self._state = STARTING

    @classmethod
    def of(cls, maker: RowMaker, count: int) -> "_Pool | None":
        """None where what makes the rows cannot be sent."""
        try:
            return cls(pickle.dumps(maker, pickle.HIGHEST_PROTOCOL), count)
        except Exception:  # whatever an object of somebody else's raises
            return None

    def _child(self, message: bytes, sockets: list[int]) -> subprocess.Popen:
        with tempfile.TemporaryFile() as request:
            request.write(message)
            request.seek(0)
            return subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main({sockets})",
                ],
                env={**os.environ, **ALONE},
                stdin=request,
                stdout=self.log,
                stderr=self.log,
                pass_fds=sockets,
                start_new_session=True,  # Ctrl-C is for this process, which stops the others
            )

    def is_ready(self) -> bool:
        """Whether all have what makes the rows; never, if that is in a file of the user's, which they do not have."""
        if self._state == STARTING and len(select.select(self.sockets, [], [], 0)[0]) == len(self.sockets):
            try:
                states = [self._receive(number)[0] for number in range(len(self.sockets))]
                self._state = READY if set(states) == {READY} else FAILED
            except DataError:  # one ended at once
                self._state = FAILED
        return self._state == READY

    def send(self, number: int, message: bytes) -> None:
        try:
            _write(self.streams[number], message)
        except OSError:
            raise self._ended() from None

    def reply(self, number: int) -> Chunk:
        """The rows of the earliest chunk that a process has and has not replied to.

        Raises:
            DataError: as in this process.
        """
        kind, *content = self._receive(number)
        if kind == ROWS:
            return pa.ipc.open_stream(content[0]).read_all(), content[1]
        if kind == REFUSED:
            raise content[0](content[1])
        raise RuntimeError(f"encoding failed in a process of its own:\n{content[0]}")

    def stop(self) -> None:
        for child in self.children:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for stream in (*self.streams, *self.sockets, self.log):
            with suppress(OSError):
                stream.close()

    def _receive(self, number: int) -> Any:
        try:
            message = _read(self.streams[number])
        except OSError:
            message = None
        if message is None:
            raise self._ended()
        return pickle.loads(message)

    def _ended(self) -> DataError:
        self.log.seek(0)
        last = self.log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        return DataError(
            "data: a process that encoded rows ended too early{last}. If memory was short, let fewer encode: {variable}=1",
            last=f" ({last[0][:200]})" if last else "",
            variable=PROCESSES,
        )


def main(sockets: Sequence[int]) -> None:
    """What a process does: read a RowMaker from its standard input, then examples; reply to each chunk with its rows.

    Args:
        sockets: the first is its own; there is a fork for each of the others.
    """
    streams = [cast(IO[bytes], socket.socket(fileno=x).makefile("rwb")) for x in sockets]
    try:
        maker: RowMaker = pickle.loads(sys.stdin.buffer.read())
        maker.processor.contains_special_tokens("")  # what it prepares is shared
    except Exception as error:  # a class that only the other process has
        for stream in streams:
            _write(stream, pickle.dumps((FAILED, repr(error))))
        return
    gc.freeze()
    own = streams[0]
    for stream in streams[1:]:
        if os.fork() == 0:
            own = stream
            break
    for stream in streams:
        if stream is not own:
            stream.close()
    messages: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:
        try:
            while (message := _read(own)) is not None:
                messages.put(message)
        finally:
            os._exit(0)  # the other process has ended, or was killed before it read a reply

    threading.Thread(target=listen, daemon=True).start()
    _write(own, pickle.dumps((READY,)))
    while True:
        _write(own, pickle.dumps(_replied(maker, messages.get()), pickle.HIGHEST_PROTOCOL))


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
