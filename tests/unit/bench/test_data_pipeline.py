"""The benchmark of the data's way: its rows, and how it measures memory."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench.data_pipeline.memory import INTERVAL, PeakMemory
from bench.data_pipeline.rows import write
from bench.shared.machine import ROOT


def test_rows_are_the_same_each_time(tmp_path: Path) -> None:
    sizes = [write(tmp_path / name, "sft", 400) for name in ("a.jsonl", "b.jsonl")]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert 300 < sizes[0] / 400 < 390, "a million rows are about 345 MB"
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [x["role"] for x in rows[0]["messages"]] == ["user", "assistant"]
    write(tmp_path / "c.jsonl", "classification", 50)
    assert {"text", "label"} == json.loads((tmp_path / "c.jsonl").read_text().splitlines()[0]).keys()


def test_our_side_measures_every_stage(tmp_path: Path) -> None:
    """On the real tokenizer: a row has the same tokens here as in training."""
    write(tmp_path / "rows.jsonl", "sft", 300)
    command = [sys.executable, "-m", "bench.data_pipeline.weitiao_side", str(tmp_path / "rows.jsonl")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.strip().splitlines()[-1])
    assert figures["seconds"].keys() >= {"read and map", "split", "encode"}


def test_memory_of_children_counts() -> None:
    """A child that holds 200 MB, and uses the processor."""
    peak = PeakMemory(os.getpid())
    time.sleep(3 * INTERVAL)
    code = f"import time; x = bytes(range(256)) * 800_000; time.sleep({6 * INTERVAL})"
    subprocess.run([sys.executable, "-c", code], check=True)
    alone, both = PeakMemory(os.getpid()), peak.stop()
    time.sleep(3 * INTERVAL)
    assert both["processes"] >= alone.stop()["processes"] + 1
    assert both["peak_mb"] > 200
