"""Compressed files and archives: read as if they were unpacked, or refused with what they are."""

import bz2
import gzip
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from weitiao.core.errors import DataError
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.raw_rows import raw_bytes
from weitiao.data.read import Reading, files_of, read_sources
from weitiao.data.unpacking import ending_of, open_file, read_file

ROWS = [{"prompt": f"问 {i}", "completion": f"答 {i}"} for i in range(200)]
PLAIN = "".join(json.dumps(x, ensure_ascii=False) + "\n" for x in ROWS).encode()
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.Codec("zstd").compress(raw, asbytes=True),
}


def read(path: Path | str, **settings: object) -> Reading:
    return read_sources([Source(path=str(path), **settings)], create("objective", "sft"), 0.5)


def answers(reading: Reading) -> list[str]:
    return [x.example.answer for x in reading.examples]


WHOLE = [x["completion"] for x in ROWS]


@pytest.mark.parametrize("ending", PACK)
def test_compressed(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a.JSONL{ending}"
    file.write_bytes(PACK[ending](PLAIN[:1000]) + PACK[ending](PLAIN[1000:]))  # two parts, as `cat a.gz b.gz` makes them
    reading = read(file)
    assert answers(reading) == WHOLE and ending_of(file) == ".jsonl"
    assert raw_bytes(reading.examples[7].where) == PLAIN.splitlines(keepends=True)[7]  # offsets are those of the plain file
    assert [x.name for x in files_of(Source(path=str(tmp_path)))] == [file.name]
    file.write_bytes(PACK[ending]("问题,回答\n今天天气,很好\n".encode("gb18030")))
    assert answers(read(file, format="csv", columns={"prompt": "问题", "completion": "回答"})) == ["很好"]


@pytest.mark.parametrize("ending", PACK)
def test_damaged_or_cut(tmp_path: Path, ending: str) -> None:
    packed = PACK[ending](PLAIN)
    file = tmp_path / f"a.jsonl{ending}"
    for content in (packed[: len(packed) // 2], packed[:40] + bytes(20) + packed[60:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a.jsonl.*: its .* data are damaged .*Copy or download the file again"):
            read(file)


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_bomb(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.jsonl{ending}").write_bytes(PACK[ending](bytes(300 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(tmp_path / f"a.jsonl{ending}")


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return path


def test_archive(tmp_path: Path) -> None:
    tables = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS[150:]), tables)
    files = {
        "b/数据.jsonl": PLAIN[: PLAIN.index(b"\n") + 1],
        "a.csv": "prompt,completion\n你好,世界\nonly one\n".encode("gb18030"),
        "c.jsonl.gz": gzip.compress(PLAIN),
        "d.parquet": tables.read_bytes(),
        "__MACOSX/b/._x.jsonl": b"junk",
        "picture.png": b"junk",
    }
    path = archive(tmp_path / "all.zip", files)
    reading = read(path)
    assert answers(reading) == ["世界", WHOLE[0], *WHOLE, *WHOLE[150:]]
    assert [str(x.where) for x in reading.bad] == [f"{path}/a.csv, line 3, byte 28"]
    assert raw_bytes(reading.bad[0].where) == b"only one\n"
    assert answers(read(f"{path}/b/数据.jsonl")) == WHOLE[:1]
    assert [x.name for x in files_of(Source(path=str(tmp_path)))] == [
        "a.csv",
        "数据.jsonl",
        "c.jsonl.gz",
        "d.parquet",
        "t.parquet",
    ]
    with pytest.raises(DataError, match="there is no file .*all.zip/nowhere.jsonl"):
        read_file(path / "nowhere.jsonl")


def test_names_of_chinese_windows(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"xxxx.jsonl": PLAIN})
    path.write_bytes(path.read_bytes().replace(b"xxxx.jsonl", "数据.jsonl".encode("gb18030")))
    assert [x.name for x in files_of(Source(path=str(path)))] == ["数据.jsonl"] and answers(read(path)) == WHOLE


@pytest.mark.parametrize("name", ["../a.jsonl", "/etc/a.jsonl", "a/../../b.jsonl", "C:/a.jsonl", "..\\a.jsonl"])
def test_name_that_leads_out(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", {name: PLAIN})
    with pytest.raises(DataError, match="which leads out of the archive"):
        read(path)
    assert [x.name for x in tmp_path.iterdir()] == ["a.zip"]


def test_archive_without_rows_or_with_a_password(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.zip holds no file with rows. It holds: x.png"):
        read(archive(tmp_path / "a.zip", {"x.png": b""}))
    path = archive(tmp_path / "b.zip", {"a.jsonl": PLAIN})
    raw = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(sign) + place] |= 1  # the flag for encryption
    path.write_bytes(raw)
    with pytest.raises(DataError, match="b.zip is encrypted"):
        read(path)


def test_archive_bomb_and_damage(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        read(archive(tmp_path / "a.zip", {"a.jsonl": bytes(300 << 20)}))
    path = archive(tmp_path / "b.zip", {"a.jsonl": PLAIN})
    raw = bytearray(path.read_bytes())
    raw[100:140] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises(DataError, match="its zip data are damaged"):
        read(path)


def test_streams_are_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(PLAIN * 2000))
    with open_file(file) as opened:
        assert opened.readline() == PLAIN.splitlines(keepends=True)[0]
        assert opened.tell() < 1 << 20
