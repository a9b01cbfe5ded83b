"""False headers of GGUF and safetensors files: one clear refusal, in bounded memory, before a library reads the file."""

# ruff: noqa: E501

import json
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from hypothesis import given
from hypothesis import strategies as st

from weitiao.core.errors import ModelError
from weitiao.core.tensor_files import check_gguf, check_safetensors

GIB = 2**30


def u32(x: int) -> bytes:
    return struct.pack("<I", x)


def u64(x: int) -> bytes:
    return struct.pack("<Q", x)


def text(x: str) -> bytes:
    return u64(len(x)) + x.encode()


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + u32(version) + u64(tensors) + u64(keys)


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


HUGE = 2**62
GGUF = {
    "empty": b"",
    "another file": b"PK\x03\x04" + bytes(100),
    "old version": header(version=1),
    "2^62 tensors": header(HUGE) + bytes(64),
    "2^62 keys": header(0, HUGE) + bytes(64),
    "a key of 2^62 bytes": header(0, 1) + u64(HUGE),
    "a key of 70,000 bytes": header(0, 1) + u64(70_000) + bytes(80_000),
    "a text of 2^62 bytes": header(0, 1) + text("k") + u32(8) + u64(HUGE),
    "an array of 2^62 bytes": header(0, 1) + text("k") + u32(9) + u32(0) + u64(HUGE) + bytes(64),
    "an array of 2^62 texts": header(0, 1) + text("k") + u32(9) + u32(8) + u64(HUGE) + bytes(64),
    "arrays in arrays in arrays": header(0, 1) + text("k") + (u32(9) + u64(1)[:0]) + (u32(9) + u64(1)) * 50,
    "a type that there is not": header(0, 1) + text("k") + u32(77) + bytes(64),
    "a key twice": header(0, 2) + (text("k") + u32(4) + u32(1)) * 2,
    "alignment 0": header(0, 1) + text("general.alignment") + u32(4) + u32(0),
    "alignment 3": header(0, 1) + text("general.alignment") + u32(4) + u32(3),
    "0 dimensions": header(1) + tensor(shape=()) + bytes(256),
    "2^31 dimensions": header(1) + text("t") + u32(2**31) + bytes(256),
    "a side of 0": header(1) + tensor(shape=(0, 4)) + bytes(256),
    "a shape that overflows": header(1) + tensor(shape=(2**32, 2**32, 2**32, 2**32)) + bytes(256),
    "more than there is": header(1) + tensor(shape=(2**20,)) + bytes(256),
    "a type of tensor that there is not": header(1) + tensor(kind=99) + bytes(256),
    "half a block": header(1) + tensor(shape=(33,), kind=8) + bytes(256),
    "an offset that is not aligned": header(1) + tensor(offset=7) + bytes(256),
    "an offset of 2^63": header(1) + tensor(offset=2**63) + bytes(256),
    "tensors that overlap": header(2) + tensor("a", (64,)) + tensor("b", (64,), offset=32) + bytes(1024),
    "a tensor twice": header(2) + tensor("a") + tensor("a", offset=128) + bytes(1024),
    "cut off in a tensor's name": header(1) + u64(10) + b"abc",
}


@pytest.mark.parametrize("case", GGUF)
def test_false_gguf_header_is_refused(case: str, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(GGUF[case])
    with pytest.raises(ModelError, match=r"is damaged, or is no GGUF file: .+ Download it again"):
        check_gguf(file)


def safetensors(entries: object, size: int = 64, length: int | None = None) -> bytes:
    data = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return u64(len(data) if length is None else length) + data + bytes(size)


def entry(start: int = 0, end: int = 64, shape: object = (16,), dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS = {
    "empty": b"",
    "a header of 2^62 bytes": safetensors({}, length=HUGE),
    "a header of 0 bytes": safetensors({}, length=0),
    "no JSON": safetensors(b"{" * 50),
    "a list": safetensors([1, 2]),
    "deep": safetensors(b"[" * 200_000),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [16]}}),
    "negative": safetensors({"a": entry(-64, 0)}),
    "true": safetensors({"a": entry(False, 64)}),
    "an end before the start": safetensors({"a": entry(64, 0)}),
    "another shape": safetensors({"a": entry(shape=[17])}),
    "a shape of 2^62": safetensors({"a": entry(shape=[HUGE, HUGE])}),
    "an unknown type": safetensors({"a": entry(dtype="F31")}),
    "cut off": safetensors({"a": entry(0, 64)}, size=32),
    "more than its header says": safetensors({"a": entry(0, 64)}, size=65),
    "tensors that overlap": safetensors({"a": entry(0, 64), "b": entry(32, 96)}, size=96),
}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_false_safetensors_header_is_refused(case: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(SAFETENSORS[case])
    with pytest.raises(ModelError, match=str(file)):
        check_safetensors(file)


def true_gguf(file: Path) -> bytes:
    writer = GGUFWriter(file, "llama")
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.0])
    writer.add_tensor("a", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("b", np.zeros(5, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


def test_true_file_is_accepted_and_every_cut_of_it_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    data = true_gguf(file)
    check_gguf(file)
    end = len(data) - 22  # the padding after the last tensor may be missing
    for length in range(0, end, 7):
        file.write_bytes(data[:length])
        with pytest.raises(ModelError):
            check_gguf(file)


@given(st.data())
def test_changed_bytes_are_accepted_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "changed.gguf"
    changed = bytearray(true_gguf(file))
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(changed)
    with suppress(ModelError):
        check_gguf(file)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_base_with_a_false_header_needs_little_memory(kind: str, tmp_path: Path) -> None:
    """`weitiao generate FILE`: a refusal, and never more than 1 GiB above what torch itself needs."""
    if kind == "gguf":
        base = tmp_path / "x.gguf"
        base.write_bytes(GGUF["an array of 2^62 bytes"])
    else:
        base = tmp_path
        (base / "config.json").write_text("{}")
        (base / "tokenizer.json").write_text("{}")
        with open(base / "model.safetensors", "wb") as stream:
            stream.write(u64(8 * GIB) + b"{")
            stream.truncate(9 * GIB)  # a hole: it needs no disk
    code = (
        "import resource, sys; from weitiao.model.loading.sources import resolve_base; from weitiao.core.errors import ModelError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: resolve_base(sys.argv[1])\n"
        "except ModelError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(base)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    message, grown = done.stdout.strip().splitlines()
    assert message.startswith("base: ") and int(grown) < 100 * 1024, done.stdout  # KiB
