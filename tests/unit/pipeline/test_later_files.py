"""What was said of the training files holds for later ones; and a value says how many rows of how many it is of."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.command import weitiao
from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.errors import DataError
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.data.later import is_utf8, with_settings_of
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model

QUIET = Reporter(Console(quiet=True))
COLUMNS = {"text": "body", "label": "topic"}
TRAIN = {"steps": 2, "evaluate_every": 0}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


def table(count: int) -> list[dict[str, str]]:
    """Rows whose title and category are not what is trained on."""
    return [
        {"title": f"box {i}", "category": "yz"[i % 2], "body": f"the quick {'fox ' * (i % 7)}{i}", "topic": "ab"[i % 3 % 2]}
        for i in range(count)
    ]


def write_csv(file: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> Path:
    with open(file, "w", encoding=encoding, newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def figures(scores: dict[str, Any]) -> dict[str, tuple]:
    return {name: (x["value"], x["n"], x.get("total", x["n"])) for name, x in scores.items()}


# -- columns ----------------------------------------------------------------------------------------------------------


def test_columns_hold_for_every_later_file(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    """evaluate --data gives the figures of evaluate.data, which gives those of a file with columns of its own."""
    rows, test = write_csv(tmp_path / "rows.csv", table(40)), write_csv(tmp_path / "test.csv", table(24))
    runs = {}
    for name, data in {"inherited": str(test), "own": {"path": str(test), "columns": COLUMNS}}.items():
        runs[name] = train_tiny(
            base=str(encoder), data=[{"path": str(rows), "columns": COLUMNS}], objective="classification", train=TRAIN,
            evaluate={"data": data, "metrics": ["loss", "accuracy", "f1"]}, out=str(tmp_path / name),
        )  # fmt: skip
    after = figures(runs["own"].scores["after"])
    assert after["accuracy"][1:] == (24, 24) and figures(runs["inherited"].scores["after"]) == after
    later = evaluate(str(runs["own"].folder), QUIET, str(test), ("loss", "accuracy", "f1"))
    assert figures({name: x.as_json() for name, x in later.items()}) == {
        name: (pytest.approx(value, rel=1e-5), n, total) for name, (value, n, total) in after.items()
    }


def test_file_without_the_columns_is_refused(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    data = {"path": str(write_csv(tmp_path / "rows.csv", table(40))), "columns": COLUMNS}
    run = train_tiny(base=str(encoder), data=[data], objective="classification", train=TRAIN)
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": f"fox {i}", "label": "ab"[i % 2]} for i in range(9)])
    with pytest.raises(DataError, match="has no column 'body'.* Its columns are: label, text"):
        evaluate(str(run.folder), QUIET, str(other))
    with pytest.raises(DataError, match="has no column body, topic to read; its columns are: label, text"):
        list(open_model(str(run.folder)).predict(str(other)))
    named = ["--columns", "text=text", "--columns", "label=label", "--metric", "accuracy", "--json"]
    code, printed = weitiao("evaluate", run.folder, "--data", other, *named)
    assert code == 0 and json.loads(printed)["accuracy"]["n"] == 9


def test_inferred_columns_come_first_in_later_files(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    trained = write_jsonl(tmp_path / "rows.jsonl", [{"review": f"the fox {i}", "topic": "ab"[i % 2]} for i in range(30)])
    run = train_tiny(base=str(encoder), data=[str(trained)], objective="classification", train=TRAIN)
    rows = [{"text": "box", "label": "z", "review": f"the fox {i}", "topic": "ab"[i % 2]} for i in range(9)]
    later = write_jsonl(tmp_path / "later.jsonl", rows)
    assert evaluate(str(run.folder), QUIET, str(later), ("accuracy",))["accuracy"].total == 9  # z would be an unknown class
    model = open_model(str(run.folder))
    wanted = [x["probabilities"] for x in model.predict([{"review": x["review"]} for x in rows])]
    assert [x["probabilities"] for x in model.predict(str(later))] == wanted
    assert [x["probabilities"] for x in model.predict(rows)] == wanted


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8"])
def test_encoding_holds_unless_the_file_is_utf8(train_tiny: Any, encoder: Path, tmp_path: Path, encoding: str) -> None:
    rows = [{"text": f"你好 世界 天气 {i}", "label": ["今天", "怎么样"][i % 2]} for i in range(40)]
    trained = write_csv(tmp_path / "rows.csv", rows, "gb18030")
    replayed = write_csv(tmp_path / "more.csv", rows[:9], encoding)
    later = write_csv(tmp_path / "later.csv", rows[:12], encoding)
    run = train_tiny(
        base=str(encoder), data=[{"path": str(trained), "encoding": "gb18030"}], objective="classification", train=TRAIN,
        replay={"path": str(replayed)},
    )  # fmt: skip
    assert evaluate(str(run.folder), QUIET, str(later), ("accuracy",))["accuracy"].total == 12
    asked = ["--input", later, "--output", tmp_path / "out.jsonl"]
    code, _ = weitiao("predict", run.folder, *asked)
    lines = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert code == 0 and [x["text"] for x in lines] == [x["text"] for x in rows[:12]]


def test_settings_of_training_sources(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "later.tsvx", table(3))
    training = (
        Source(path="a.csv", columns={"text": "words", "label": "kind"}, task="t"),
        Source(path="b.dat", columns=COLUMNS, format="csv", task="t"),
        Source(path="c.csv", columns={"text": "title"}, task="u"),
    )
    later = with_settings_of(Source(path=str(file), task="t"), training)
    assert (later.format, later.columns, later.encoding) == ("csv", COLUMNS, "auto")
    own = Source(path=str(file), task="t", columns={"text": "title", "label": "category"}, format="csv")
    assert with_settings_of(own, training) == own
    other = Source(path=str(write_jsonl(tmp_path / "other.jsonl", [{"text": "fox", "label": "a"}])), task="t")
    assert with_settings_of(other, training).columns is None  # a recipe's own file with other columns: they are inferred
    assert with_settings_of(other, training, strict=True).columns == training[0].columns
    (tmp_path / "a.txt").write_bytes("中文".encode("gbk"))
    assert not is_utf8(tmp_path / "a.txt") and is_utf8(file)


# -- rows of how many -------------------------------------------------------------------------------------------------


@pytest.fixture
def spam(train_tiny: Any, encoder: Path, tmp_path: Path) -> tuple[Any, Path]:
    rows = [{"text": f"the fox {i}", "label": ["ham", "spam"][i % 2]} for i in range(40)]
    data = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    run = train_tiny(base=str(encoder), data=[data], objective="classification", train=TRAIN)
    test = [*rows[:30], *[{"text": "", "label": "ham"}] * 40, *[{"text": "fox", "label": "phish"}] * 30]
    return run, write_csv(tmp_path / "test.csv", test)


def test_rows_that_cannot_be_measured_are_counted(spam: tuple[Any, Path]) -> None:
    run, test = spam
    with pytest.raises(DataError, match="70.0% of the rows cannot be measured, and max_bad_fraction is 0.01"):
        evaluate(str(run.folder), QUIET, str(test))
    code, printed = weitiao("evaluate", run.folder, "--data", test)
    assert code == 2 and "--max-bad-fraction 0.71" in printed
    code, printed = weitiao("evaluate", run.folder, "--data", test, "--max-bad-fraction", "0.71")
    text = " ".join(printed.split())
    assert code == 0 and "n = 30 of 100" in text
    assert "30 of 100 rows were measured; 40: the text is empty; 30: the class 'phish' is not one of" in text
    code, printed = weitiao("evaluate", run.folder, "--data", test, "--max-bad-fraction", "1", "--json")
    for score in json.loads(printed).values():
        assert (score["n"], score["total"], score["left_out"]) == (30, 100, 70)
        assert "30 of 100 rows were measured" in score["notes"][-1]


def test_validation_and_test_rows_are_counted_in_the_run(train_tiny: Any, encoder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the fox {i}", "label": ["ham", "spam"][i % 2]} for i in range(40)]
    test = write_jsonl(tmp_path / "test.jsonl", [*rows[:9], {"text": " ", "label": "ham"}, {"text": "x", "label": "phish"}])
    run = train_tiny(
        base=str(encoder), data=[str(write_jsonl(tmp_path / "rows.jsonl", rows))], objective="classification", train=TRAIN,
        evaluate={"data": str(test), "metrics": "auto"}, max_bad_fraction=0.2,
    )  # fmt: skip
    assert {(x["n"], x["total"]) for x in run.scores["after"].values()} == {(9, 11)}
    assert "9 of 11" in (run.folder / "report.html").read_text() and "9 of 11 rows were measured" in run._repr_html_()
    code, printed = weitiao("runs", run.folder.parent, "--json")
    (row,) = [x for x in json.loads(printed) if x["run"] == run.folder.name]
    assert code == 0 and (row["n"], row["total"]) == (9, 11)
