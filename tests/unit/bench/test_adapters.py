"""The adapters suite in its short form, and its words."""

from pathlib import Path

import pytest

from bench.adapters.run import KINDS, line, quantile, ratio

CASE = {
    kind: [{"per_second": speed * turn, "per_core_second": speed} for turn in (1.0, 1.1, 0.9)]
    for kind, speed in zip(KINDS, (100.0, 80.0, 68.0))
}


def test_ratios_are_turn_by_turn() -> None:
    assert ratio(CASE, "eight adapters", "one adapter") == pytest.approx([0.85] * 3)
    assert "eight / one 0.85 (0.85 to 0.85; 0.85 per processor second), one / base 0.80" in line(8, CASE)
    assert quantile([float(i) for i in range(100)], 0.95) == 95.0


@pytest.mark.real
@pytest.mark.slow
def test_short_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    from bench.adapters import run

    flags = ["--short", "--rows", "8", "--cold", "3", "--precision", "fp32", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["bench.adapters", *flags, "--results", str(tmp_path)])
    run.main()
    text = (tmp_path / "adapters_fp32_short.md").read_text()
    assert "| 8 |" in text and "3 adapters of rank 8" in text and "from disk: p50" in text
    assert text in capsys.readouterr().out
