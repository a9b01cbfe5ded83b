"""Check the headers of GGUF and safetensors files before a library reads them.

A header is a stranger's claim: counts, lengths, offsets. A false one makes a reader allocate what it says or read past the
end. Here every length is compared with the bytes that are left in the file, so a check needs no more memory than the header
itself has, and every tensor must lie inside the file and beside the others.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from weitiao.core.errors import InvalidValue, ModelError

MAX_JSON = 100_000_000  # bytes: safetensors' own limit
SAMPLE = 4096  # bytes of a tensor
MAX_NAME, MAX_DIMENSIONS, MAX_DEPTH = 65_535, 4, 2
STRING, ARRAY = 8, 9
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's type -> bytes
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16,
    "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
GGUF_BLOCKS = {  # type -> (weights, bytes) of a block (ggml.h)
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


def check_safetensors(file: Path) -> None:
    """Check that a safetensors file is complete, and that its tensors lie beside one another inside it.

    Raises:
        ModelError: it is not one, it was cut off, or its header is false.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 0 < length <= min(size - 8, MAX_JSON):
            raise ModelError("base: {file} is not a safetensors file, or its download is incomplete", file=file)
        text = stream.read(length)
    try:
        header = json.loads(text)
        spans = [_span(header[name]) for name in header if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise ModelError("base: {file} is not a safetensors file, or its download is incomplete", file=file) from None
    end = max((end for _, end in spans), default=0)
    expected = 8 + length + end
    if size < expected:
        raise ModelError(
            "base: {file} is incomplete ({size:,} of {expected:,} bytes). Download it again",
            file=file,
            size=size,
            expected=expected,
        )
    if size > expected or _overlap(spans):
        raise ModelError("base: {file} is damaged: its header is false. Download it again", file=file)


def sampled_sha256(folder: Path) -> str:
    """A hash of the names, types, shapes and some bytes of every tensor in a folder: another model's is another one.

    Of each tensor its first and its middle `SAMPLE` bytes are read, so that a large model takes no longer than its header.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
            for name in sorted(header.keys() - {"__metadata__"}):
                entry = header[name]
                digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
                start, end = entry["data_offsets"]
                for offset in (start, (start + end) // 2):
                    stream.seek(8 + length + offset)
                    digest.update(stream.read(min(SAMPLE, end - offset)))
    return digest.hexdigest()


def _span(entry: dict[str, Any]) -> tuple[int, int]:
    """(start, end) of a tensor, after its size was compared with its shape."""
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    numbers = [start, end, *shape]
    if not all(type(x) is int and x >= 0 for x in numbers):
        raise ValueError
    if math.prod(shape) * SAFETENSORS_BITS[str(entry["dtype"])] != 8 * (end - start):
        raise ValueError
    return start, end


def _overlap(spans: Iterable[tuple[int, int]]) -> bool:
    last = 0
    for start, end in sorted(x for x in spans if x[1] > x[0]):
        if start < last:
            return True
        last = end
    return False


# -- GGUF -------------------------------------------------------------------------------------------------------------


def check_gguf(file: Path) -> None:
    """Check that a GGUF file's header is true of the file.

    Raises:
        ModelError: it is not a GGUF file, it was cut off, or a length, an offset or a type in it is false.
    """
    with open(file, "rb") as stream:
        try:
            _GGUFHeader(stream, os.fstat(stream.fileno()).st_size).check()
        except InvalidValue as error:
            raise ModelError(
                "base: {file} is damaged, or is no GGUF file: {reason}. Download it again", file=file, reason=error.message
            ) from None


class _GGUFHeader:
    """Reads a header once, from its start to its end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size, self.alignment = stream, size, 32

    def check(self) -> None:
        if self._read(4) != b"GGUF":
            raise InvalidValue("it does not begin with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise InvalidValue("version {version} is neither 2 nor 3", version=version)
        tensors, keys = self._count(24), self._count(13)
        seen: set[bytes] = set()
        for _ in range(keys):
            name = self._string(MAX_NAME)
            if name in seen:
                raise InvalidValue("a key is there twice")
            seen.add(name)
            self._value(name, self._number("<I"), 0)
        spans = [self._tensor(seen) for _ in range(tensors)]
        start = -(-self.stream.tell() // self.alignment) * self.alignment
        if any(start + end > self.size for _, end in spans):
            raise InvalidValue("a tensor ends after the file does")
        if _overlap(spans):
            raise InvalidValue("two tensors share their bytes")

    def _value(self, name: bytes, kind: int, depth: int) -> None:
        """Pass over a value."""
        if kind == STRING:
            self._string(self.size)
        elif kind == ARRAY and depth < MAX_DEPTH:
            inner = self._number("<I")
            n = self._count(SCALARS.get(inner, 8))
            if inner in SCALARS:
                self._skip(n * SCALARS[inner])
                return
            for _ in range(n):
                self._value(b"", inner, depth + 1)
        elif kind in SCALARS:
            data = self._read(SCALARS[kind])
            if name == b"general.alignment":
                self.alignment = int.from_bytes(data, "little")
                if kind != 4 or self.alignment not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
                    raise InvalidValue("general.alignment is no power of two")
        else:
            raise InvalidValue("a value has type {kind}, which there is not", kind=kind)

    def _tensor(self, seen: set[bytes]) -> tuple[int, int]:
        """Where a tensor's bytes begin and end, counted from the first tensor."""
        name = b"tensor " + self._string(MAX_NAME)
        if name in seen:
            raise InvalidValue("a tensor is there twice")
        seen.add(name)
        dimensions = self._number("<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise InvalidValue("a tensor has {n} dimensions", n=dimensions)
        shape = [self._number("<Q") for _ in range(dimensions)]
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in GGUF_BLOCKS:
            raise InvalidValue("a tensor has type {kind}, which there is not", kind=kind)
        weights, size = GGUF_BLOCKS[kind]
        if shape[0] % weights or not all(shape) or offset % self.alignment:
            raise InvalidValue("a tensor's shape or offset does not fit its type")
        return offset, offset + math.prod(shape) // weights * size

    def _count(self, least: int) -> int:
        """A number of things of at least so many bytes each."""
        n = self._number("<Q")
        if n * least > self.size - self.stream.tell():
            raise InvalidValue("it has {n:,} entries, more than the file has room for", n=n)
        return n

    def _string(self, most: int) -> bytes:
        length = self._number("<Q")
        if length > most:
            raise InvalidValue("a text has {n:,} bytes", n=length)
        return self._read(length)

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._read(struct.calcsize(form)))[0]

    def _skip(self, n: int) -> None:
        if n > self.size - self.stream.tell():
            raise InvalidValue("it ends too early")
        self.stream.seek(n, os.SEEK_CUR)

    def _read(self, n: int) -> bytes:
        if n > self.size - self.stream.tell():
            raise InvalidValue("it ends too early")
        return self.stream.read(n)
