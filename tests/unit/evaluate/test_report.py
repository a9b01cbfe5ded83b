"""report.html: one file that asks nobody for anything, and shows what was measured."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import pytest

from support.rows import write_jsonl
from weitiao.core.events import Step, Validation
from weitiao.core.messages import Message, language
from weitiao.core.recipe import make_recipe
from weitiao.core.run import Run
from weitiao.evaluate.report.charts import loss_curve
from weitiao.evaluate.report.run_report import MAX_CLASSES, confused_of, matrix_of, speed, write_report
from weitiao.evaluate.report.verdict import verdict

VOID = {"meta", "input"}


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of each language."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words, self.chinese = "", ""
        self.language = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "span":
            self.language = dict(attrs).get("lang", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self.language = ""

    def handle_data(self, data: str) -> None:
        self.words += data * (self.language != "zh")
        self.chinese += data * (self.language != "en")


@pytest.fixture
def page(train_tiny: Any) -> tuple[Run, str]:
    run = train_tiny(evaluate={"metrics": ["loss", "exact_match"], "samples": 2})
    return run, (run.folder / "report.html").read_text(encoding="utf-8")


def test_report_is_self_contained(page: tuple[Run, str]) -> None:
    text = page[1]
    assert not re.search(r"https?://", text)
    tags = Tags(text).tags
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert not [x for _, attributes in tags for x in attributes if x == "src" or x.startswith("on")]
    links = [attributes["href"] for _, attributes in tags if "href" in attributes]
    assert links and all(x.startswith("#") for x in links)
    assert "@import" not in text and "url(" not in text


def test_report_shows_scores(page: tuple[Run, str]) -> None:
    run, words = page[0], Tags(page[1]).words
    scores = run.read("scores.json")
    for side in ("before", "after"):
        loss = scores[side]["loss"]
        assert re.search(rf"{loss['value']:.3f}\s*\[{loss['low']:.3f}, {loss['high']:.3f}\]", words)
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
    assert sum(tag == "circle" and a["class"] == "held" for tag, a in tags) == len(list(run.events(Validation))) == 2


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
    drawn = loss_curve([step()], [Validation(1, 1, None, {}, 0.1)])
    assert "nan" not in drawn and "<polyline" in drawn and "circle" not in drawn
    assert loss_curve([], []) == ""


def test_report_speed() -> None:
    assert str(speed([step(1500, 2.0), step(500, 2.0)])) == "2 steps, 2,000 tokens in 4 s (500 tokens/s)"


def test_report_holds_both_languages(page: tuple[Run, str]) -> None:
    text = page[1]
    for english, chinese in (("Before and after", "训练前后"), ("How to repeat it", "如何重现")):
        assert f'<span lang="en">{english}</span><span lang="zh">{chinese}</span>' in text
    assert 'id="show-en" checked' in text and 'id="show-zh">' in text
    assert text.count("rank: 4") == 1  # what is the same in both is there once
    assert language() == "en"  # drawing in both leaves the reader's language as it is


def test_report_opens_in_readers_language(page: tuple[Run, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_LANG", "zh")
    text = write_report(page[0]).read_text(encoding="utf-8")
    assert '<html lang="zh">' in text and 'id="show-zh" checked' in text


def test_tags_are_closed(page: tuple[Run, str]) -> None:
    class Nesting(HTMLParser):
        open_tags: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: list) -> None:
            if tag not in VOID:
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list) -> None:
            pass  # <line/>: of a drawing

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    parser = Nesting()
    parser.feed(page[1])
    assert parser.open_tags == []


def scored(value: float, low: float, high: float, n: int = 200) -> dict[str, Any]:
    return {"name": "accuracy", "value": value, "low": low, "high": high, "n": n, "higher_is_better": True}


def verdict_of(tmp_path: Path, scores: dict[str, Any]) -> list[tuple[str, str]]:
    run = Run.create(make_recipe({"base": "x", "data": "a.jsonl", "out": str(tmp_path / "run")}))
    run.write("scores.json", scores)
    return [(kind, str(text)) for kind, text in verdict(run)]


def test_verdict_of_a_better_run_that_forgot(tmp_path: Path) -> None:
    forgotten = {"verdict": "worse", "sentence": Message("capital cities: 71 → 64 %").as_json()}
    few = {"verdict": "few_rows", "sentence": Message("declines: 3 → 2 %").as_json()}
    lines = verdict_of(
        tmp_path,
        {
            "before": {"loss": scored(2.0, 1.9, 2.1), "accuracy": scored(0.2, 0.1, 0.3)},
            "after": {"loss": scored(1.0, 0.9, 1.1), "accuracy": scored(0.8, 0.7, 0.9)},
            "baselines": {"always a": scored(0.75, 0.65, 0.85), "always b": scored(0.1, 0.05, 0.2)},
            "forgetting": {"findings": [forgotten, few]},
        },
    )
    assert lines[0] == ("better", "Better at the task: accuracy 20.0 % [10.0, 30.0] → 80.0 % [70.0, 90.0], n = 200.")
    assert ("warning", "Not shown to be above the baseline “always a”: 75.0 % [65.0, 85.0].") in lines
    assert ("better", "Above the baseline “always b”: 10.0 % [5.0, 20.0].") in lines
    assert ("worse", "Forgotten: capital cities: 71 → 64 %") in lines
    assert lines[-1][1].startswith("Not finished")


@pytest.mark.parametrize(
    ("after", "kind", "begins"),
    [
        (scored(0.1, 0.0, 0.15), "worse", "Worse at the task"),
        (scored(0.35, 0.25, 0.45), "overlap", "No difference shown"),
        (scored(0.9, 0.5, 1.0, n=8), "few_rows", "Too few held-out rows"),
    ],
)
def test_verdict_kinds(tmp_path: Path, after: dict[str, Any], kind: str, begins: str) -> None:
    lines = verdict_of(tmp_path, {"before": {"accuracy": scored(0.3, 0.2, 0.4)}, "after": {"accuracy": after}})
    assert lines[0][0] == kind and lines[0][1].startswith(begins)


def test_verdict_without_rows(tmp_path: Path) -> None:
    assert verdict_of(tmp_path, {})[0][1].startswith("No rows were measured")


def test_large_confusion_matrix_becomes_a_list() -> None:
    names = [f"c{i:02}" for i in range(MAX_CLASSES + 1)]
    rows = {x: [int(x == y) for y in names] for x in names}
    rows["c03"][5] = 7
    matrix = {"answers": names, "rows": rows}
    assert matrix_of(matrix) == {} and confused_of(matrix) == [("c03", "c05", 7, "87.5 % [52.9, 97.8]")]
    small = {"answers": ["a", "b", ""], "rows": {"a": [3, 1, 0], "b": [0, 0, 2]}}
    assert matrix_of(small)["rows"][0] == ("a", [(3, "0.75", "right"), (1, "0.25", ""), (0, "0.00", "")])
    assert confused_of(small) == []
