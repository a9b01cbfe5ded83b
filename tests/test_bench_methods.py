"""bench/methods.py for real, in its short form: both sides start, take turns, and follow one loss curve."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import chat_rows, write_jsonl

BENCH = Path(__file__).parent.parent / "bench" / "methods.py"
APART = 1e-6  # |ours - PEFT's| / PEFT's loss; fp32 on a tiny model gives 2e-7


def run(*words: str) -> str:
    command = [sys.executable, str(BENCH), "--threads", "1", *words]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_short_form(tiny: Path, tmp_path: Path) -> None:
    """Two methods, the curves within 1e-6; what is there already is not measured again."""
    rows = write_jsonl(tmp_path / "rows.jsonl", chat_rows(8))
    words = ["--short", "--model", str(tiny), "--rows", str(rows), "--results", str(tmp_path)]
    run(*words, "--methods", "lora")
    first = json.loads((tmp_path / "methods_short.json").read_text())["cases"]["lora"]
    said = run(*words)
    cases = json.loads((tmp_path / "methods_short.json").read_text())["cases"]
    assert list(cases) == ["lora", "prompt_tuning"] and cases["lora"] == first
    assert "| prompt_tuning |" in said and "| lora |" in (tmp_path / "methods_short.md").read_text()
    for case in cases.values():
        ours, theirs = case["losses"]["weitiao"], case["losses"]["peft"]
        assert len(ours) == len(theirs) == 2
        assert all(abs(a - b) <= APART * abs(b) for a, b in zip(ours, theirs))
        assert abs(ours[1] - ours[0]) > 100 * APART * ours[0], "a curve that stands still says nothing"
        assert case["trained"]["weitiao"] == case["trained"]["peft"]
