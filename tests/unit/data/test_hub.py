"""Data sets by id, against a local server with the hubs' documented interfaces: no real hub was reached."""

import importlib.util
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.dataset_hub import COMMIT, DatasetHub, serving
from weitiao.core.errors import DataError
from weitiao.core.recipe_sections import Source
from weitiao.data.hub import RemoteFile, choose

ROWS = [{"prompt": f"question {i}", "completion": f"答案 {i}"} for i in range(20_000)]
READ = """
import json, sys
from weitiao.core.errors import WeitiaoError
from weitiao.core.recipe_sections import Source
from weitiao.data.hub import pinned_dataset
from weitiao.data.read import files_of
from weitiao.data.readers.parquet import read
source = Source.model_validate(json.loads(sys.argv[1]))
try:
    rows = [row.fields for file in files_of(source) for row in read(file, "auto")]
    print(json.dumps({"rows": len(rows), "last": rows[-1]["completion"], "revision": pinned_dataset(source).revision}))
except WeitiaoError as error:
    print(json.dumps({"error": str(error)}))
"""


def parquet(rows: list[dict]) -> bytes:
    raw = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), raw, compression="none")
    return raw.getvalue()


FILES = {
    "README.md": b"# a data set",
    "default/train/0000.parquet": parquet(ROWS[:15_000]),
    "default/train/0001.parquet": parquet(ROWS[15_000:]),
    "default/test/0000.parquet": parquet(ROWS[:5]),
}


def read(hub: DatasetHub, folder: Path, path: str = "hf:owner/name", **settings: Any) -> dict[str, Any]:
    """Read in a process of its own: the libraries read their addresses when they are imported."""
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"),
        "MODELSCOPE_CACHE": str(folder / "ms"), "MODELSCOPE_HOME": str(folder / "ms-home"), "HF_HUB_OFFLINE": "0",
        "WEITIAO_HOME": str(folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
    }  # fmt: skip
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        env.pop(proxy, None)
    command = [sys.executable, "-c", READ, json.dumps({"path": path, **settings})]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


IDS = ["hf:owner/name", pytest.param("modelscope:owner/name", marks=pytest.mark.skipif(
    importlib.util.find_spec("modelscope_hub") is None, reason="modelscope is not installed"))]  # fmt: skip


@pytest.mark.parametrize("path", IDS)
def test_downloaded_once_and_pinned(tmp_path: Path, path: str) -> None:
    with serving(DatasetHub(dict(FILES))) as hub:
        first = read(hub, tmp_path, path)
        assert first == {"rows": 20_000, "last": "答案 19999", "revision": COMMIT if "hf" in path else "master"}
        hub.requests.clear()
        hub.files["default/train/0000.parquet"] = parquet(ROWS[:1])  # the hub has moved on
        assert read(hub, tmp_path, path) == first and hub.requests == []
        assert read(hub, tmp_path, path, split="test")["rows"] == 5


@pytest.mark.parametrize("path", IDS)
def test_cut_connection_goes_on(tmp_path: Path, path: str) -> None:
    """Hugging Face's library writes blocks of 10 MB, so it asks again from the last whole one on."""
    rows = [{"prompt": random.Random(i).randbytes(8000).hex(), "completion": "答案"} for i in range(1600)]
    with serving(DatasetHub({"default/train/0000.parquet": parquet(rows)}, cut=12_000_000, cuts=1)) as hub:
        assert read(hub, tmp_path, path)["rows"] == 1600
        starts = [int(x.split("bytes=")[1].split("-")[0]) for x in hub.requests if "bytes=" in x]
        assert max(starts, default=0) >= 10_000_000, hub.requests


@pytest.mark.parametrize("path", IDS)
def test_damaged_file_refused_and_deleted(tmp_path: Path, path: str) -> None:
    with serving(DatasetHub(dict(FILES), damaged=True)) as hub:
        error = read(hub, tmp_path, path)["error"]
        assert "default/train/0000.parquet" in error and ("damaged on its way" in error or "mismatch" in error.lower())
        hub.damaged = False
        assert read(hub, tmp_path, path)["rows"] == 20_000


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "there is no data set hf:owner/name, or it is private: then log in"),
        (404, "RepoNotFound", "there is no data set hf:owner/name"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (500, "", "hf:owner/name is not on this disk and cannot be read"),
    ],
)
def test_refused_by_hugging_face(tmp_path: Path, status: int, code: str, words: str) -> None:
    with serving(DatasetHub(dict(FILES), status=status, code=code)) as hub:
        assert words in read(hub, tmp_path)["error"]


@pytest.mark.skipif(importlib.util.find_spec("modelscope_hub") is None, reason="modelscope is not installed")
@pytest.mark.parametrize(("status", "words"), [(404, "there is no data set"), (401, "log in with: modelscope login")])
def test_refused_by_modelscope(tmp_path: Path, status: int, words: str) -> None:
    with serving(DatasetHub(dict(FILES), status=status)) as hub:
        assert words in read(hub, tmp_path, "modelscope:owner/name")["error"]


def test_revisions(tmp_path: Path) -> None:
    with serving(
        DatasetHub({"data/train-00000-of-00001.parquet": FILES["default/test/0000.parquet"]}, ("main", "v1"))
    ) as hub:
        assert read(hub, tmp_path)["rows"] == 5  # there is no refs/convert/parquet
        assert read(hub, tmp_path, revision="v1")["rows"] == 5
        assert "has no revision v2" in read(hub, tmp_path, revision="v2")["error"]


def test_no_network(tmp_path: Path) -> None:
    hub = DatasetHub({}, url="http://127.0.0.1:9")
    assert "is not on this disk and cannot be read" in read(hub, tmp_path)["error"]


def test_subsets_and_splits() -> None:
    def chosen(names: list[str], **settings: Any) -> list[str]:
        files = [RemoteFile(x, 1, "") for x in names]
        return [x.path for x in choose(files, Source(path="hf:a/b", **settings))[1]]

    converted = ["zh/train/0001.parquet", "zh/train/0000.parquet", "zh/test/0000.parquet", "en/partial-train/0000.parquet"]
    assert chosen(converted, subset="zh") == ["zh/train/0000.parquet", "zh/train/0001.parquet"]
    assert chosen(converted, subset="en") == ["en/partial-train/0000.parquet"]
    with pytest.raises(DataError, match="hf:a/b has the subsets en, zh: name one with subset"):
        chosen(converted)
    with pytest.raises(DataError, match="subset zh, has no split validation; it has: test, train"):
        chosen(converted, subset="zh", split="validation")
    pushed = [
        "data/train-00000-of-00002-0a1b.parquet",
        "data/train-00001-of-00002-3c.parquet",
        "data/test-00000-of-00001.parquet",
    ]
    assert chosen(pushed) == pushed[:2] and chosen(pushed, split="test") == pushed[2:]
    assert chosen(["train.parquet", "test.parquet"]) == ["train.parquet"]
    with pytest.raises(DataError, match=r"has no Parquet files; it has: a.csv. Download it"):
        chosen(["a.csv"])
