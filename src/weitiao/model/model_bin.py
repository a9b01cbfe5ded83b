"""CTranslate2's model.bin, read: a header, then each weight's name, shape, kind of number and bytes. Nothing in it can run.

    u32 version (6)    text spec    u32 revision
    u32 how many       each: text name, u8 rank, u32 x rank shape, u8 kind, u32 bytes, the bytes (row by row)
    u32 how many       each: text alias, text name            a text: u16 length, its bytes, a nought that counts

Source: OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, `ModelSpec._serialize` (little endian throughout).
"""

import math
import struct
from collections.abc import Callable
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
    except (ValueError, struct.error, UnicodeDecodeError) as trouble:
        raise ModelError(f"base: {file} is not a whole CTranslate2 model: {trouble}.") from None
    return found


# -- Whisper's names --------------------------------------------------------------------------------------------------

Put = Callable[[str, Tensor], None]
MLP = (("linear_0", "fc1"), ("linear_1", "fc2"))


def whisper_weights(stored: Stored) -> dict[str, Tensor]:
    """The weights by transformers' names (WhisperForConditionalGeneration), in fp32.

    Queries, keys and values stand one below the other in one matrix; in cross attention, keys and values in a second one.

    Raises:
        ModelError: it is another model, or in whole numbers (int8), which cannot be trained.
    """
    if stored.spec != "WhisperSpec":
        raise ModelError(f"base: this CTranslate2 model is a {stored.spec}; only Whisper's are read.")
    if any(x.dtype in (torch.int8, torch.int16) and x.dim() > 1 for x in stored.weights.values()):
        raise ModelError("base: this CTranslate2 model is in whole numbers; take one in float16 or float32.")
    made: dict[str, Tensor] = {}

    def put(name: str, weight: Tensor) -> None:
        made[f"model.{name}"] = weight.float()

    for name in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            put(f"encoder.{name}.{part}", stored.get(f"encoder/{name}/{part}"))
    put("decoder.embed_tokens.weight", stored.get("decoder/embeddings/weight"))
    for half in ("encoder", "decoder"):
        put(f"{half}.embed_positions.weight", stored.get(f"{half}/position_encodings/encodings"))
        _norm(stored, f"{half}/layer_norm", f"{half}.layer_norm", put)
        number = 0
        while f"{half}/layer_{number}/ffn/linear_0/weight" in stored.weights:
            _layer(stored, f"{half}/layer_{number}", f"{half}.layers.{number}", put)
            number += 1
    made["proj_out.weight"] = made["model.decoder.embed_tokens.weight"]
    return made


def _layer(stored: Stored, theirs: str, ours: str, put: Put) -> None:
    _norm(stored, f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", put)
    for there, here in MLP:
        for part in ("weight", "bias"):
            put(f"{ours}.{here}.{part}", stored.get(f"{theirs}/ffn/{there}/{part}"))
    _attention(stored, f"{theirs}/self_attention", f"{ours}.self_attn", 2, put)
    if f"{theirs}/attention/linear_0/weight" in stored.weights:
        _attention(stored, f"{theirs}/attention", f"{ours}.encoder_attn", 3, put)


def _attention(stored: Stored, theirs: str, ours: str, matrices: int, put: Put) -> None:
    """The last matrix is the output; those before it are q, k, v [3 D, D] together, as one matrix or as two."""
    _norm(stored, f"{theirs}/layer_norm", f"{ours}_layer_norm", put)
    for part in ("weight", "bias"):
        *before, out = (stored.get(f"{theirs}/linear_{i}/{part}") for i in range(matrices))
        for name, x in zip(("q_proj", "k_proj", "v_proj"), torch.cat(before).chunk(3)):
            if (name, part) != ("k_proj", "bias"):  # nought: Whisper's keys have none
                put(f"{ours}.{name}.{part}", x.clone())
        put(f"{ours}.out_proj.{part}", out)


def _norm(stored: Stored, theirs: str, ours: str, put: Put) -> None:
    put(f"{ours}.weight", stored.get(f"{theirs}/gamma"))
    put(f"{ours}.bias", stored.get(f"{theirs}/beta"))
