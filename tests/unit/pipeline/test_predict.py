"""`weitiao predict`: every row in order, with its other columns; bad rows set aside; no partial output."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.command import weitiao
from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.errors import DataError, ModelError
from weitiao.core.reporter import Reporter
from weitiao.evaluate.measure import predict as predict_held_out
from weitiao.pipeline import predict
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.predict import predict_file

DESK = Reporter(Console(quiet=True))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def texts(count: int) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"the quick {'fox ' * (i % 13)}{i}", "label": "ab"[i % 2]} for i in range(count)]


@pytest.fixture
def opened(train_tiny: Any, encoder: Path, tmp_path: Path) -> Model:
    rows = write_jsonl(tmp_path / "rows.jsonl", texts(30))
    objective = {"name": "classification", "head_learning_rate": 1e-2}
    run = train_tiny(base=str(encoder), data=[{"path": str(rows)}], objective=objective, train={"steps": 3}, max_length=12)
    return open_model(str(run.folder))


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_predict_order_ids_probabilities(opened: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same probabilities as when the rows are measured, whatever shares a batch with what."""
    from weitiao.core.example import SourceLocation
    from weitiao.core.recipe_sections import Source
    from weitiao.data.prepare import Encoder
    from weitiao.data.read import read_sources

    file = write_jsonl(tmp_path / "new.jsonl", texts(25))
    monkeypatch.setattr(predict, "CHUNK", 8)
    monkeypatch.setattr(predict, "BATCH_TOKENS", 40)
    done = predict_file(opened, str(file), str(tmp_path / "out.jsonl"), DESK)
    found = lines(tmp_path / "out.jsonl")
    assert done.rows == 25 and done.bad == 0 and [x["id"] for x in found] == list(range(25))
    encoder = Encoder(opened.objective, opened.assets.processor, opened.assets.identity, 12, "truncate", DESK)
    examples = read_sources((Source(path=str(file)),), opened.objective, 0.0).examples
    assert all(isinstance(x.where, SourceLocation) for x in examples)
    measured = predict_held_out(opened.model, opened.objective, encoder.hold_out(examples))
    for line, (said, example) in zip(found, measured):
        assert line["text"] == example.text
        assert line["probabilities"] == pytest.approx(said, abs=1e-5)
        assert line["predicted"] == max(said, key=said.get) and sum(line["probabilities"].values()) == pytest.approx(
            1, abs=1e-5
        )
    assert done.truncated == sum(len(opened.assets.processor.text(x["text"])) > 12 for x in texts(25)) > 0


def test_predict_bad_rows_set_aside(opened: Model, tmp_path: Path) -> None:
    file = tmp_path / "new.jsonl"
    file.write_text('{"text": "fox", "id": 1}\n{"text": "", "id": 2}\nnot json\n{"text": 3}\n{"id": 5}\n{"text": null}\n')
    done = predict_file(opened, str(file), str(tmp_path / "out.jsonl"), DESK)
    assert (done.rows, done.bad) == (2, 4)
    assert [x.get("id") for x in lines(tmp_path / "out.jsonl")] == [1, None]
    reasons = {x["line"]: x["reason"] for x in lines(tmp_path / "out.jsonl.bad_rows.jsonl")}
    assert set(reasons) == {2, 3, 5, 6} and reasons[2] == "the text is empty" and "'text' is missing" in reasons[5]
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("rows", "text", "words"),
    [
        ([{"words": "fox"}], None, "has no column text to read; its columns are: words. Name the column with --text"),
        ([{"text": "fox"}], "body", "has no column body to read; its columns are: text"),
        ([{"text": " "}], None, "no row is usable"),
    ],
)
def test_predict_unreadable_file(opened: Model, tmp_path: Path, rows: list, text: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        predict_file(opened, str(write_jsonl(tmp_path / "new.jsonl", rows)), str(tmp_path / "out.jsonl"), DESK, text)
    assert not (tmp_path / "out.jsonl").exists()


def test_predict_of_generating_run_refused(train_tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="objective sft generates its answers.*--prompts FILE"):
        predict_file(open_model(str(train_tiny(train={"steps": 1}).folder)), "x.jsonl", str(tmp_path / "out.jsonl"), DESK)


def test_predict_on_command_line(opened: Model, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("id,body\n1,the quick fox\n2,\n")
    asked = ["--input", file, "--output", tmp_path / "o.jsonl", "--text", "body"]
    code, said = weitiao("predict", tmp_path / "run", *asked)
    assert code == 0 and "1 rows are in" in said and "1 rows are unusable" in said
    assert lines(tmp_path / "o.jsonl")[0]["id"] == "1"


def test_run_with_head_cannot_generate(opened: Model, tmp_path: Path) -> None:
    code, output = weitiao("generate", tmp_path / "run", "Hello")
    assert code == 2 and "objective classification" in output and "weitiao predict" in output
