"""report.html: one file that asks nobody for anything, and shows what was measured."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from support.rows import write_jsonl
from weitiao.core.events import Step, Validation
from weitiao.core.recipe import make_recipe
from weitiao.core.run import Run
from weitiao.evaluate.report import curve, speed, write_report


class Tags(HTMLParser):
    """Every tag with its attributes, and all visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def page(train_tiny: Any) -> tuple[Run, str]:
    run = train_tiny(evaluate={"metrics": ["loss", "exact_match"], "samples": 2})
    return run, (run.folder / "report.html").read_text(encoding="utf-8")


def test_report_is_self_contained(page: tuple[Run, str]) -> None:
    text = page[1]
    assert not re.search(r"https?://", text)
    tags = Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert not [x for _, attributes in tags for x in attributes if x in ("src", "href") or x.startswith("on")]
    assert "@import" not in text and "url(" not in text


def test_report_shows_scores(page: tuple[Run, str]) -> None:
    run, words = page[0], Tags(page[1]).words
    scores = run.read("scores.json")
    for side in ("before", "after"):
        loss = scores[side]["loss"]
        assert f"{loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}]" in words
    assert "exact_match" in words and "95 % intervals" in words
    for key, decision in run.decisions.items():
        assert key in words and str(decision.reason) in words
    assert "rank: 4" in words and '"torch"' in words and "finished" in words
    for sample in run.read("samples.jsonl"):
        assert sample["prompt"] in words


def test_report_curve_points(page: tuple[Run, str]) -> None:
    run, tags = page[0], Tags(page[1]).tags
    (line,) = [a["points"] for tag, a in tags if tag == "polyline" and a["class"] == "train"]
    assert len(line.split()) == 4 == len(list(run.events(Step)))
    assert sum(tag == "circle" for tag, _ in tags) == len(list(run.events(Validation))) == 2


def test_report_escapes_html(train_tiny: Any, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [{"prompt": f"{evil} {i}", "completion": evil} for i in range(20)]
    run = train_tiny(data=[{"path": str(write_jsonl(tmp_path / "evil.jsonl", rows))}], evaluate={"samples": 2})
    page = Tags((run.folder / "report.html").read_text())
    assert not {tag for tag, _ in page.tags} & {"script", "img"} and evil in page.words


def test_report_of_run_without_steps(tmp_path: Path) -> None:
    run = Run.create(make_recipe({"base": "x", "data": "a.jsonl", "out": str(tmp_path / "run")}))
    words = Tags(write_report(run).read_text()).words
    assert "new" in words and "a.jsonl" in words and "Before and after" not in words


def step(tokens: int = 64, seconds: float = 1.0) -> Step:
    return Step(1, 1, 2.0, 1.0, 1e-3, tokens, 32, seconds)


def test_report_curve_single_value() -> None:
    drawn = curve([step()], [Validation(1, 1, None, {}, 0.1)])
    assert "nan" not in drawn and "<polyline" in drawn and "circle" not in drawn
    assert curve([], []) == ""


def test_report_speed() -> None:
    assert str(speed([step(1500, 2.0), step(500, 2.0)])) == "2 steps, 2,000 tokens in 4 s (500 tokens/s)"
