"""CTranslate2's model.bin, read: a header, then each weight's name, shape, kind of number and bytes. Nothing in it can run.

    u32 version (6)    text spec    u32 revision
    u32 how many       each: text name, u8 rank, u32 x rank shape, u8 kind, u32 bytes, the bytes (row by row)
    u32 how many       each: text alias, text name            a text: u16 length, its bytes, a nought that counts

Source: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, `ModelSpec._serialize` (little endian throughout).
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weitiao.core.errors import ModelError

VERSIONS = (4, 5, 6)  # of the container; the same layout
KINDS = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


@dataclass
class _Cursor:
    """A place in the bytes."""

    raw: memoryview
    at: int = 0

    def take(self, many: int) -> memoryview:
        if self.at + many > len(self.raw):
            raise ValueError("it ends too early")
        self.at += many
        return self.raw[self.at - many : self.at]

    def number(self, form: str) -> int:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8")


@dataclass
class Stored:
    """What a model.bin holds."""

    spec: str
    """WhisperSpec, TransformerSpec ..."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    """Another name -> the weight it stands for."""

    def get(self, name: str) -> Tensor:
        """A weight, under its own or another name.

        Raises:
            ModelError: it is not there.
        """
        found = self.weights.get(self.aliases.get(name, name))
        if found is None:
            raise ModelError(f"base: this CTranslate2 model has no {name}.")
        return found


def read_model_bin(file: Path) -> Stored:
    """Every weight, as it is stored.

    Raises:
        ModelError: it is no model.bin, of another version, or cut short.
    """
    cursor = _Cursor(memoryview(np.memmap(file, np.uint8, "r").data))
    try:
        version = cursor.number("I")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, known are {', '.join(map(str, VERSIONS))}")
        found = Stored(cursor.text())
        cursor.number("I")
        for _ in range(cursor.number("I")):
            name = cursor.text()
            shape = tuple(cursor.number("I") for _ in range(cursor.number("B")))
            kind, size = KINDS.get(cursor.number("B")), cursor.number("I")
            if kind is None or size != math.prod(shape) * np.dtype(kind).itemsize:
                raise ValueError(f"{name} is of a kind that is not known here")
            found.weights[name] = torch.from_numpy(np.frombuffer(cursor.take(size), kind).reshape(shape).copy())
        for _ in range(cursor.number("I")):
            alias = cursor.text()
            found.aliases[alias] = cursor.text()
        if cursor.at != len(cursor.raw):
            raise ValueError("something stands behind its end")
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(f"base: {file} is not a whole CTranslate2 model: {error}.") from None
    return found
