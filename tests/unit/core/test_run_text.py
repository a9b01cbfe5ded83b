"""A Run shown to people: the lines at the end of training, and what a notebook shows."""

from typing import Any

from rich.console import Console

from weitiao.core.messages import Message
from weitiao.core.run_html import run_html
from weitiao.core.run_text import print_result


def test_end_of_training_has_scores_and_next_commands(train_tiny: Any) -> None:
    run, console = train_tiny(train={"steps": 2}), Console(record=True, width=200)
    print_result(run, console)
    text = console.export_text()
    assert "before" in text and "loss" in text and f"report: {run.folder}/report.html" in text
    assert f"next: weitiao chat {run.folder} --compare" in text and f"weitiao why {run.folder}" in text


def test_notebook_shows_status_scores_and_curve(train_tiny: Any) -> None:
    run = train_tiny(train={"steps": 4})
    page = run._repr_html_()
    assert "finished" in page and "<table>" in page and page.count("<polyline") == 1 and "<script" not in page
    assert len(page.partition('points="')[2].partition('"')[0].split()) == 4


def test_html_is_escaped_and_needs_nothing() -> None:
    page = run_html("<b>", Message("running"), {}, [])
    assert page == "<p><b>&lt;b&gt;</b>: running</p>"
    assert "3 steps" in run_html("r", Message("running"), {}, [2.0, 2.0, 2.0])
