"""The bytes of rows: what a row that was set aside looked like, and the proof that no byte of a file was passed over."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from weitiao.core.example import SourceLocation
from weitiao.data.unpacking import open_file

BLOCK = 1 << 20


def raw_bytes(where: SourceLocation) -> bytes:
    """The bytes of a row in a format with lines, with its line end; b"" where a row has no bytes of its own."""
    if where.offset is None:
        return b""
    with open_file(Path(where.file)) as opened:
        if opened.seekable():
            opened.seek(where.offset)
        else:
            for _ in _blocks(opened.read, where.offset):
                pass
        return opened.read(-1 if where.length is None else where.length)


def bytes_between(path: Path, rows: Iterable[SourceLocation]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of what lies between the rows of a file, in order: blank lines, a byte order mark, a header.

    The lengths of the rows and of these bytes add up to the size of the (unpacked) file.

    Args:
        rows: all rows of the file, in their order.

    Raises:
        ValueError: two rows overlap, a row reaches behind the end of the file, or has no offset.
    """
    end = 0
    with open_file(path) as opened:
        for where in rows:
            if where.offset is None or where.offset < end:
                raise ValueError(f"{where} overlaps the row before it, or has no offset")
            if gap := opened.read(where.offset - end):
                yield end, gap
            length = 0
            for block in _blocks(opened.read, where.length):
                length += len(block)
            if where.length is not None and length != where.length:
                raise ValueError(f"{where} reaches behind the end of the file")
            end = where.offset + length
        if rest := opened.read():
            yield end, rest


def _blocks(read: Callable[[int], bytes], size: int | None) -> Iterator[bytes]:
    """The next bytes of a stream, up to a number, or all."""
    while size is None or size > 0:
        block = read(BLOCK if size is None else min(BLOCK, size))
        if not block:
            return
        size = None if size is None else size - len(block)
        yield block
