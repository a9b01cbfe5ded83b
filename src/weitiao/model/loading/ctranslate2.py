"""Reader of CTranslate2's model.bin: a header, then each weight's name, shape, dtype and bytes. It holds no code.

    u32 version (6)    text spec    u32 revision
    u32 count          each: text name, u8 rank, u32 x rank shape, u8 dtype, u32 size, the bytes (row-major)
    u32 count          each: text alias, text name            text: u16 length, its bytes, a zero byte (counted)

Source: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, `ModelSpec._serialize` (little endian throughout).
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weitiao.core.errors import InvalidValue, ModelError, message_of

VERSIONS = (4, 5, 6)  # of the container; all have this layout
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


@dataclass
class _Cursor:
    """A reading position in the bytes."""

    raw: memoryview
    offset: int = 0

    def take(self, size: int) -> memoryview:
        if self.offset + size > len(self.raw):
            raise InvalidValue("it ends too early")
        self.offset += size
        return self.raw[self.offset - size : self.offset]

    def number(self, format: str) -> int:
        return struct.unpack(f"<{format}", self.take(struct.calcsize(format)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8")


@dataclass
class StoredModel:
    """The contents of a model.bin."""

    spec: str
    """WhisperSpec, TransformerSpec ..."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Alias -> name of the weight."""

    def get(self, name: str) -> Tensor:
        """A weight by its name or alias.

        Raises:
            ModelError: there is no such weight.
        """
        weight = self.weights.get(self.aliases.get(name, name))
        if weight is None:
            raise ModelError("base: this CTranslate2 model has no {name}", name=name)
        return weight


def read_model_bin(file: Path) -> StoredModel:
    """All weights, in their stored dtype.

    Raises:
        ModelError: the file is not a model.bin, has another version, or is truncated.
    """
    cursor = _Cursor(memoryview(np.memmap(file, np.uint8, "r").data))
    try:
        version = cursor.number("I")
        if version not in VERSIONS:
            supported = ", ".join(map(str, VERSIONS))
            raise InvalidValue("its version is {version}; supported are {known}", version=version, known=supported)
        model = StoredModel(cursor.text())
        cursor.number("I")
        for _ in range(cursor.number("I")):
            name = cursor.text()
            shape = tuple(cursor.number("I") for _ in range(cursor.number("B")))
            dtype, size = DTYPES.get(cursor.number("B")), cursor.number("I")
            if dtype is None or size != math.prod(shape) * np.dtype(dtype).itemsize:
                raise InvalidValue("{name} has an unsupported dtype", name=name)
            model.weights[name] = torch.from_numpy(np.frombuffer(cursor.take(size), dtype).reshape(shape).copy())
        for _ in range(cursor.number("I")):
            alias = cursor.text()
            model.aliases[alias] = cursor.text()
        if cursor.offset != len(cursor.raw):
            raise InvalidValue("there are bytes after its end")
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(
            "base: {file} is not a complete CTranslate2 model: {error}", file=file, error=message_of(error)
        ) from None
    return model
