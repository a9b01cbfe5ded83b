"""Entities whose offsets were counted in another way: named, never cut short."""

import json
from pathlib import Path
from typing import Any

import pytest

from weitiao.core.bio_tags import tags_to_entities
from weitiao.core.example import ExtractiveQA, TokenTags
from weitiao.core.recipe_sections import Source
from weitiao.data.character_offsets import utf16_slice
from weitiao.data.mapping import find_mapping
from weitiao.data.read import read_sources
from weitiao.objective.objectives.token_classification import TokenClassification

INSIDE = "is the end inside? add 1 to every end"
UTF16 = "counted in UTF-16 units, as JavaScript does: count characters"


def made(text: str, entities: list, column: str = "entities") -> Any:
    return find_mapping([{"text": text, column: entities}], TokenTags, None, "f").make({"text": text, column: entities})


@pytest.mark.parametrize("key", ["text", "value", "word", "mention"])
@pytest.mark.parametrize(
    ("text", "start", "end", "words", "hint"),
    [
        ("王小明在北京", 0, 2, "王小明", INSIDE),
        ("😀王小明在北京", 2, 5, "王小明", UTF16),
        ("😀王小明", 2, 5, "王小明", UTF16),
        ("王小明在北京", 1, 3, "王小明", "does it count from 1?"),
        ("Ada met Bo", 0, 2, "Ada", INSIDE),
        ("在北京", 3, 9, "北京", "counted in bytes"),
        ("Ada met Bo", 0, 3, "Bo", "but the text at 0 to 3 is 'Ada'"),
        ("Ada met Bo", 8, 20, "Bo", "but the text at 8 to 20 is 'Bo'"),
    ],
)
def test_words_of_an_entity_are_compared(key: str, text: str, start: int, end: int, words: str, hint: str) -> None:
    with pytest.raises(ValueError) as error:
        made(text, [{"start": start, "end": end, "label": "PER", key: words}])
    assert f"entities[0] is {words!r}" in str(error.value) and hint in str(error.value)


def test_right_words_are_accepted() -> None:
    entities = [
        {"start": 0, "end": 3, "label": "PER", "text": "王小明"},
        {"start": 4, "end": 6, "label": "LOC", "text": "北京"},
    ]
    assert made("王小明在北京", entities).answer == "王小明 (PER), 北京 (LOC)"
    assert made("a Bo ", [{"start": 1, "end": 5, "label": "PER", "text": "Bo"}]).tags == ("O", "B-PER")


@pytest.mark.parametrize(
    ("text", "entity", "hint"),
    [
        ("Ada met Bo in Oslo", [14, 17, "LOC"], INSIDE),
        ("a 王", [2, 2, "PER"], INSIDE),
        ("😀😀 Bo", [5, 7, "PER"], UTF16),
    ],
)
def test_offsets_without_words(text: str, entity: list, hint: str) -> None:
    with pytest.raises(ValueError, match=hint.replace("?", r"\?")):
        made(text, [entity])


@pytest.mark.parametrize(
    "entity",
    [
        {"start_offset": 0, "end_offset": 3, "label": "PER", "id": 7},
        {"start": 0, "end": 3, "labels": ["PER"], "text": "Ada"},
        {"start": 0, "end": 3, "entity_group": "PER", "word": "Ada", "score": 0.9},
        {"start": 0, "end": 3, "type": "PER"},
    ],
)
def test_entities_of_annotation_tools(entity: dict) -> None:
    assert made("Ada met", [entity], "label").tags == ("B-PER", "O")


@pytest.mark.parametrize(("number", "level"), [(1, "warning"), (3, "error")])
def test_few_rows_show_how_a_file_counts(tmp_path: Path, number: int, level: str) -> None:
    """Where the end is inside, names of one character show it, and all others are cut."""
    rows = [{"text": "王小明在北京", "entities": [[0, 2, "PER"], [4, 5, "LOC"]]}] * 200
    rows += [{"text": "去京", "entities": [[1, 1, "LOC"]]}] * number
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    reading = read_sources([Source(path=str(tmp_path / "x.jsonl"))], TokenClassification(), 1.0)
    (finding,) = reading.findings()
    assert (finding.name, finding.level) == ("offsets", level)
    assert f"offsets of {number} rows are wrong ({INSIDE})" in str(finding.message)


def test_offsets_of_an_answer() -> None:
    record = {"question": "who?", "context": "😀 by Goya", "answers": [{"text": "Goya", "start": 6}]}
    with pytest.raises(ValueError, match="is not at character 6 of the context, but at 5 .counted in UTF-16 units"):
        find_mapping([record], ExtractiveQA, None, "f").make(record)


@pytest.mark.parametrize(("start", "end", "words"), [(0, 2, "😀"), (2, 3, "a"), (1, 3, None), (0, 9, None), (-1, 1, None)])
def test_slice_in_utf_16(start: int, end: int, words: str | None) -> None:
    assert utf16_slice("😀a", start, end) == words


# -- schemes ----------------------------------------------------------------------------------------------------------

ENTITIES = [(0, 2, "x"), (2, 3, "x"), (4, 7, "y")]


@pytest.mark.parametrize(
    "tags",
    [
        ["B-x", "I-x", "B-x", "O", "B-y", "I-y", "I-y"],
        ["B-x", "E-x", "S-x", "O", "B-y", "I-y", "E-y"],
        ["B-x", "L-x", "U-x", "O", "B-y", "I-y", "L-y"],
        ["B-x", "E-x", "S-x", "O", "B-y", "M-y", "E-y"],
    ],
)
def test_schemes_are_read_alike(tags: list[str]) -> None:
    assert tags_to_entities(tags) == ENTITIES


def test_iob1_is_read_by_name_only() -> None:
    tags = ["I-x", "I-x", "B-x", "O", "I-y", "I-y", "I-y"]
    with pytest.raises(ValueError, match="repair_tags: true"):
        tags_to_entities(tags)
    assert tags_to_entities(tags, repair=True) == ENTITIES


@pytest.mark.parametrize("tag", ["PER", "B_PER", "PER-B", "o", "b-PER", "-", "B-"])
def test_unknown_tags_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="is none of O, B-x"):
        tags_to_entities([tag])


@pytest.mark.parametrize("tags", [[None, "O"], [float("nan"), "O"], ["", "O"], [["O"], "O"]])
def test_missing_tag_is_a_bad_row(tags: list) -> None:
    mapping = find_mapping([{"tokens": ["a", "b"], "tags": ["O", "O"]}], TokenTags, None, "f")
    with pytest.raises(ValueError, match=r"tags\[0\] is .*, not a tag"):
        mapping.make({"tokens": ["a", "b"], "tags": tags})
    assert mapping.make({"tokens": ["a", "b"], "tags": [1.0, 0]}).tags == ("1", "0")
