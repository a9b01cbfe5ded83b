"""The growth suite in its short form: both sides at each point, killed and continued; tables and chart."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.command import wait_for

ROOT = Path(__file__).parents[3]
TOLERANCE = 1e-5  # |weitiao's loss - the reference's| / the loss


def command(results: Path, *more: str) -> list[str]:
    flags = ["--short", "--series", "length", "--steps", "2", "--threads", "1", "--results", str(results)]
    return [sys.executable, "-m", "bench.growth", *flags, *more]


@pytest.mark.slow
def test_growth_bench_continues_after_kill(tmp_path: Path) -> None:
    """Two points; killed after the first, it continues with the second only."""
    file, variables = tmp_path / "growth_short.json", {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command(tmp_path), cwd=ROOT, env=variables, stdout=subprocess.DEVNULL) as child:
        wait_for(file, child)
        child.kill()
    first = json.loads(file.read_text())["cases"]
    assert len(first) == 1
    done = subprocess.run(command(tmp_path), cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(file.read_text())
    assert results["setup"]["machine"]["openmp"], "how OpenMP threads wait is recorded"
    cases, points = results["cases"], results["setup"]["series"]["length"]["places"]
    assert list(cases) == [point["case"] for point in points] and len(cases) == 2
    assert all(cases[name] == first[name] for name in first)
    for case in cases.values():
        assert case["tokens"] == 64 and not case["left_out"]
        ours, reference = case["losses"]["weitiao"], case["losses"]["plain"]
        assert len(ours) == len(reference) == 3 and all(abs(a - b) <= TOLERANCE * b for a, b in zip(ours, reference))
        assert case["blocks"] == {"weitiao": "llama", "plain": "transformers"}
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in case["seconds"].values())
        assert all(0 < held["before_model_mb"] < held["peak_mb"] for held in case["memory"].values())
        assert 0 <= case["share_of_others"] <= 1
    tables = (tmp_path / "growth_short.md").read_text()
    assert "**Row length**" in tables and "\n| 64 | " in tables and "**Vocabulary size**" not in tables
    drawn = ElementTree.parse(tmp_path / "growth_short.svg").getroot()
    lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
    assert [line.get("class") for line in lines] == ["weitiao", "plain"] * 2, "two lines each for speed and memory"


@pytest.mark.slow
def test_growth_bench_bf16(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "--precision", "bf16"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "growth_bf16_short.json").read_text())
    assert results["setup"]["precision"] == "bf16" and "AdamW, bf16" in (tmp_path / "growth_bf16_short.md").read_text()
    for case in results["cases"].values():
        ours, reference = case["losses"]["weitiao"], case["losses"]["plain"]
        assert case["blocks"] == {"weitiao": "llama", "plain": "transformers"}
        assert all(abs(a - b) <= 1e-2 * b for a, b in zip(ours, reference, strict=True))


@pytest.mark.slow
def test_growth_bench_skips_too_large_point(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "--limit-gb", "0"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    cases = json.loads((tmp_path / "growth_short.json").read_text())["cases"]
    assert all(list(case["seconds"]) == ["weitiao"] and case["left_out"] for case in cases.values()) and len(cases) == 2
    assert "so it is left out" in (tmp_path / "growth_short.md").read_text()
    assert 'class="plain" points' not in (tmp_path / "growth_short.svg").read_text()
