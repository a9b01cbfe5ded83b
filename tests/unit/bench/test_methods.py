"""The methods suite in its short form: both sides start, alternate, and follow one loss curve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.command import wait_for
from support.rows import chat_rows, write_jsonl

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-6  # |ours - PEFT's| / PEFT's loss; 2e-7 on a tiny model in fp32, 4e-4 with a 10 % lower learning rate


@pytest.mark.slow
def test_methods_bench_continues_after_kill(tiny_llama: Path, tmp_path: Path) -> None:
    """Two methods, the curves within 1e-6; killed after the first, it continues with the second only."""
    rows, file = write_jsonl(tmp_path / "rows.jsonl", chat_rows(8)), tmp_path / "methods_short.json"
    command = [
        sys.executable,
        "-m",
        "bench.methods",
        "--short",
        "--threads",
        "1",
        "--model",
        str(tiny_llama),
        "--rows",
        str(rows),
    ]
    command += ["--results", str(tmp_path), "--work", str(tmp_path / "work")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL) as child:
        wait_for(file, child)
        child.kill()
    first = json.loads(file.read_text())["cases"]
    assert list(first) == ["lora"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads(file.read_text())["cases"]
    assert list(cases) == ["lora", "prompt_tuning"] and cases["lora"] == first["lora"]
    assert "| prompt_tuning |" in done.stdout and "| lora |" in (tmp_path / "methods_short.md").read_text()
    for case in cases.values():
        ours, theirs = case["losses"]["weitiao"], case["losses"]["peft"]
        assert len(ours) == len(theirs) == 2
        assert abs(ours[-1] - case["untrained"]) > 100 * TOLERANCE * ours[-1], "the loss changes"
        assert all(abs(a - b) <= TOLERANCE * abs(b) for a, b in zip(ours, theirs))
        assert case["trained"]["weitiao"] == case["trained"]["peft"] > 0
        assert all(0 < case["memory"][who]["before_model_mb"] < case["memory"][who]["peak_mb"] for who in case["memory"])
