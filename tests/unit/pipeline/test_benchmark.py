"""`weitiao bench machine`: products, attention, copies."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.command import weitiao
from weitiao.core.reporter import Reporter
from weitiao.pipeline import benchmark


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    real = benchmark.bench_machine
    quick = {"rows": (16, 32), "lengths": (8, 16), "seconds": 0.02}
    monkeypatch.setattr(benchmark, "LARGEST_COPY", 2)
    monkeypatch.setattr(benchmark, "TOO_LONG", 1e9)
    monkeypatch.setattr(benchmark, "bench_machine", lambda base, reporter: real(base, reporter, **quick))


def test_benchmark_json(tiny_llama: Path) -> None:
    code, said = weitiao("bench", "machine", tiny_llama, "--json")
    found = json.loads(said)
    assert (
        code == 0 and found["base"] == str(tiny_llama) and 0 <= found["background"] <= 1 and found["shapes_left_out"] == 0
    )
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in found["lines"]:
        kinds.setdefault(line["operation"], []).append(line)
        assert line["rate"]["low"] <= line["rate"]["median"] <= line["rate"]["high"] and line["rate"]["n"] >= 1
    shapes = {x["shape"] for x in kinds["products"]}
    assert shapes == {"32 -> 32", "32 -> 16", "32 -> 48", "48 -> 32", "all"}, "the tiny Llama's"
    assert len(kinds["products"]) == 5 * 2 * 2, "two precisions, two row counts"
    assert len(kinds["attention"]) == 2 * 2 * 2 and {x["shape"] for x in kinds["attention"]} == {"forward", "with backward"}
    assert all(x["of_products"] > 0 for x in kinds["attention"]) and len(kinds["copy"]) == 1


def test_benchmark_tables(tiny_llama: Path) -> None:
    code, said = weitiao("bench", "machine", tiny_llama)
    assert code == 0 and len(said.splitlines()) < 60
    for words in ("GFLOP/s", "16 rows", "fp32", "bf16", "with backward", "GB/s", "medians [", "n = "):
        assert words in said


def test_benchmark_without_base_fetches_nothing() -> None:
    """The test's own cache is empty, and the network is closed: SmolLM2's shapes are known."""
    code, said = weitiao("bench", "machine")
    assert code == 0 and "SmolLM2-135M" in said and "1,536" in said


def test_benchmark_missing_base() -> None:
    code, said = weitiao("bench", "machine", "./nowhere")
    assert code == 2 and "is not a model" in said


def test_benchmark_reports_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.BackgroundLoad, "share", lambda self: 0.4)
    console = Console(record=True, width=200)
    benchmark.bench_machine(None, Reporter(Console(quiet=True))).show(console)
    assert "other programs used 40% of the machine" in console.export_text()


def test_benchmark_skips_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "TOO_LONG", 1e-9)
    console = Console(record=True, width=200)
    found = benchmark.bench_machine(None, Reporter(Console(quiet=True)))
    assert found.too_slow == [f"{dtype} {x}" for dtype in ("fp32", "bf16") for x in ("products 32", "attention 16")]
    found.show(console)
    assert "too slow to measure: fp32 products 32" in console.export_text()
