"""Class names: spellings of one class, classes that mean "no class", figures as names, and files ordered by class."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from weitiao.core.class_names import folded
from weitiao.core.errors import DataError
from weitiao.core.example import SourcedExample, SourceLocation, TextLabel, TokenTags
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.label_checks import check_labels, refuse_missing_classes
from weitiao.data.read import read_sources
from weitiao.objective.objectives.classification import Classification
from weitiao.objective.objectives.token_classification import TokenClassification


def rows_of(*labels: str) -> list[SourcedExample]:
    return [SourcedExample(TextLabel(f"text {i}", (x,)), SourceLocation("f", i)) for i, x in enumerate(labels)]


def findings(*labels: str, held_out: tuple[str, ...] = ()) -> dict[str, tuple[str, str]]:
    return {x.name: (x.level, str(x.message)) for x in check_labels(rows_of(*labels), rows_of(*held_out))}


def test_spellings_of_one_class_refused() -> None:
    level, message = findings(*["Spam", "spam", "SPAM", "ham", "ham\u200b"] * 8)["class_names"]
    assert level == "error" and message.startswith("5 classes, but these differ only in case, width, invisible characters")
    assert "'SPAM' (8), 'Spam' (8), 'spam' (8)" in message and "'ham' (8), 'ham\\u200b' (8)" in message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.0", "1"),
        ("True", "TRUE"),
        ("true", "1"),
        ("Ａ", "a"),
        ("a  b", "a b"),
        ("\ufeffx", "x"),
        ("-1.0", "-1"),
        ("01", "1"),
        ("０", "0"),
    ],
)
def test_alike(one: str, other: str) -> None:
    assert folded(one) == folded(other)
    assert findings(one, "z", held_out=(other,))["class_names"][0] == "error"


@pytest.mark.parametrize(("one", "other"), [("1.5", "1"), ("a", "b"), ("v1.0", "v1"), ("①", "1 "), ("", "a"), ("C", "C++")])
def test_different(one: str, other: str) -> None:
    assert folded(one) != folded(other) or one == "①"  # NFKC: ① is 1


def test_several_classes_in_one_cell_are_told() -> None:
    level, message = findings("sport", "politics", "sport, politics", "C/C++")["class_names"]
    assert level == "warning" and "1 of 4 classes are made of others ('sport, politics')" in message


def test_plain_classes_are_fine() -> None:
    assert findings("spam", "ham", "spam") == {"class_names": ("fine", "2 classes, no two of them alike")}


def test_spellings_of_entity_types() -> None:
    tagged = [
        SourcedExample(TokenTags("a b", ((0, 1), (2, 3)), ("B-PER", x)), SourceLocation("f", i))
        for i, x in enumerate(("B-per", "O"))
    ]
    assert [x.level for x in check_labels(tagged, [])] == ["error"]


@pytest.mark.parametrize("label", ["-1", "?", "unknown", "N/A", "None", "nan", "未知"])
def test_no_class_is_told(label: str) -> None:
    level, message = findings(*["0", "1"] * 30, *[label] * 6)["missing_class"]
    assert (
        level == "warning" and f"1 of 3 classes usually mean that a row has no class: {label!r} (6 of 66 rows)" in message
    )


def test_minus_one_and_one_are_two_classes() -> None:
    assert "missing_class" not in findings(*["-1", "1"] * 10)


def test_file_without_a_class_is_no_test_data() -> None:
    with pytest.raises(DataError, match="no row has a class: all 2 rows say '-1', in f"):
        refuse_missing_classes(rows_of("-1", "-1"))
    for labels in (("-1", "1"), ("1", "1"), ()):
        refuse_missing_classes(rows_of(*labels))
    refuse_missing_classes([*rows_of("-1"), SourcedExample(TextLabel("a", ()), SourceLocation("f", 2))])


def test_split_off_rows_may_all_be_of_class_none(train_tiny: Any, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": "some" if i == 0 else "none"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    run = train_tiny(data=str(tmp_path / "rows.jsonl"), objective="classification", train={"steps": 1}, validation=0.1)
    assert run.scores


def test_evaluation_without_a_class_refused(train_tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": f"t {i}", "label": i % 2}) + "\n" for i in range(12)))
    run = train_tiny(data=str(tmp_path / "rows.jsonl"), objective="classification", train={"steps": 1}, validation=0)
    (tmp_path / "hidden.jsonl").write_text("".join(json.dumps({"text": f"t {i}", "label": -1}) + "\n" for i in range(12)))
    code, output = weitiao("evaluate", run.folder, "--data", tmp_path / "hidden.jsonl")
    assert code == 2 and "no row has a class: all 12 rows say '-1'" in output
    (tmp_path / "other.csv").write_text("text,label\na,1.0\nb,0.0\n")
    code, output = weitiao("evaluate", run.folder, "--data", tmp_path / "other.csv")
    assert code == 2 and "it is '1' in another spelling" in output


# -- numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["①", "²", "m²", "٣", "１２", "--5", "-", "9" * 5000, "½"])
def test_any_character_may_name_a_class(label: str) -> None:
    objective = Classification().fit([TextLabel("a", (label,)), TextLabel("b", ("x",))])
    assert set(objective.classes) == {label, "x"}


@pytest.mark.parametrize("names", [(), ("O", "B-x", "I-x")])
@pytest.mark.parametrize("tag", ["①", "²"])
def test_superscript_tag_is_a_bad_row(tag: str, names: tuple[str, ...]) -> None:
    good, bad = TokenTags("a", ((0, 1),), ("B-x",)), TokenTags("a", ((0, 1),), (tag,))
    objective = TokenClassification(tag_names=names).fit([good, bad])
    with pytest.raises(ValueError, match=f"the tag '{tag}' is none of"):
        objective._entities(bad)


# -- a part of a file -------------------------------------------------------------------------------------------------


def test_limit_of_a_file_that_is_ordered_by_class(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}", "label": x} for x in "abc" for i in range(100)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    source = Source(path=str(tmp_path / "x.jsonl"), limit=200)
    (finding,) = read_sources([source], create("objective", "classification"), 0.0).findings()
    assert (finding.name, finding.level) == ("limit", "warning")
    assert "limit takes the first 200 rows, and they have no row of 'c' (100)" in str(finding.message)
    mixed = [{"text": f"t {i}", "label": "abc"[i % 3]} for i in range(300)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(x) + "\n" for x in mixed))
    assert not read_sources([source], create("objective", "classification"), 0.0).findings()


def test_other_spelling_of_a_training_class_is_named() -> None:
    objective = Classification(classes=("True", "False"))
    with pytest.raises(ValueError, match="'TRUE' is not one of the training classes.*it is 'True' in another spelling"):
        objective.rows(TextLabel("a", ("TRUE",)), None)
    with pytest.raises(DataError, match="every row has the class"):
        Classification().fit([TextLabel("a", ("x",))])
