"""Tagged text from columns, spans and CoNLL files: formats, word units, and messages for bad rows."""

from pathlib import Path
from typing import Any

import pytest

from weitiao.core.errors import DataError
from weitiao.core.example import BadRow, TextLabel, TokenTags
from weitiao.core.registry import find_module
from weitiao.data.mapping import find_inference_mapping, find_mapping
from weitiao.data.records import Reader, Record
from weitiao.data.word_units import join_tokens, split_units

SPANS = [{"start": 0, "end": 3, "label": "nr"}, {"start": 5, "end": 8, "label": "ns"}]


def made(record: dict, columns: dict | None = None) -> Any:
    return find_mapping([record], TokenTags, columns, "f").make(record)


def words(x: TokenTags) -> list[str]:
    return [x.text[a:b] for a, b in x.units]


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"tokens": ["江", "民", "在", "x", "New", "York"], "ner_tags": ["B-nr", "I-nr", "O", "O", "B-ns", "I-ns"]}, None),
        ({"words": ["Ada", "in", "Rome"], "labels": ["B-nr", "O", "B-ns"]}, None),
        ({"w": ["Ada"], "t": ["B-nr"]}, {"tokens": "w", "tags": "t"}),
    ],
)  # fmt: skip
def test_tokens_and_tags_rows(record: dict, columns: dict | None) -> None:
    x = made(record, columns)
    assert words(x) == list(record.values())[0] and list(x.tags) == list(record.values())[1]


@pytest.mark.parametrize("key", ["entities", "spans", "label", "labels"])
@pytest.mark.parametrize("listed", [False, True])
def test_span_rows(key: str, listed: bool) -> None:
    x = made(
        {
            "text": "江泽民在 New York?",
            key: [[0, 3, "nr"], [5, 13, "ns"]] if listed else [*SPANS[:1], {**SPANS[1], "end": 13}],
        }
    )
    assert words(x) == ["江", "泽", "民", "在", "New", "York", "?"]
    assert x.tags == ("B-nr", "I-nr", "I-nr", "O", "B-ns", "I-ns", "O")
    assert x.answer == "江泽民 (nr), New York (ns)"


def test_class_is_not_span() -> None:
    record = {"text": "x", "label": "spam"}
    assert find_mapping([record], TextLabel, None, "f").make(record) == TextLabel("x", ("spam",))
    with pytest.raises(
        DataError, match="no columns of tokens and tags.*They look like text -> class: label, for objective: classification"
    ):
        made(record)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 tokens (tokens) but 1 tags (tags)"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "tokens[1] is '', not a token"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "tokens[1] is 3, not a token"),
        ({"tokens": [" "], "tags": ["O"]}, "the text is empty"),
        ({"tokens": [], "tags": []}, "the text is empty"),
        ({"text": "江泽民", "entities": [[0, 4, "nr"]]}, "entities[0] is 0 to 4, outside the text of 3 characters"),
        ({"text": "江泽民", "entities": [[-1, 2, "nr"]]}, "is -1 to 2, outside the text"),
        ({"text": "江泽民", "entities": [[2, 2, "nr"]]}, "is 2 to 2, outside the text"),
        ({"text": "江泽民", "entities": [[0, 2.0, "nr"]]}, "expected two whole numbers and a label"),
        ({"text": "江泽民", "entities": [[0, 2, ""]]}, "expected two whole numbers and a label"),
        ({"text": "江泽民", "entities": ["江"]}, "entities[0] is neither {start, end, label} nor [start, end, label]"),
        ({"text": "江泽民", "entities": [[1, 3, "a"], [0, 2, "b"]]}, "the entities '江泽' (b) and (a) at 1 overlap"),
        ({"text": "in Rome", "entities": [[3, 5, "ns"]]}, "'Ro' (ns) at 3 ends or starts inside the word 'Rome'"),
        ({"text": "in  Rome", "entities": [[2, 4, "ns"]]}, "at 2 to 4 (ns) contains no word"),
        ({"text": " ", "entities": []}, "the text is empty"),
    ],
)
def test_invalid_tagged_row_reason(record: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        made(record)
    assert message in str(error.value)


def test_entity_spaces_trimmed() -> None:
    assert made({"text": "in Rome now", "entities": [[2, 8, "ns"]]}).tags == ("O", "B-ns", "O")


def test_rows_without_tags() -> None:
    """Text or tokens, row by row; what else stands in the row is not read."""
    rows = [{"text": "Ada 江"}, {"text": "x", "tokens": ["New York", "!"]}, {"text": "y", "entities": [[7, 99, "ns"]]}]
    mapping = find_inference_mapping(rows, TokenTags, None, "f")
    assert [words(mapping.make(row)) for row in rows] == [["Ada", "江"], ["New York", "!"], ["y"]]
    assert find_inference_mapping(rows, TokenTags, {"text": "text"}, "f").make(rows[1]).text == "x"
    with pytest.raises(DataError, match="no column text to read"):
        find_inference_mapping([{"body": "x"}], TokenTags, None, "f")


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("中共中央总书记", list("中共中央总书记")),
        ("１９９８年，Ｂ·克林顿", ["１９９８", "年", "，", "Ｂ", "·", "克", "林", "顿"]),
        ("e\u0301te\u0301 हिन्दी", ["e\u0301te\u0301", "हिन्दी"]),
        ("a\u200bb \u3000\x00c", ["a\u200bb", "c"]),
        ("😀!_x", ["😀", "!", "_x"]),
        ("カタカナ한국어 𠀀", ["カ", "タ", "カ", "ナ", "한국어", "𠀀"]),
        (" \n", []),
    ],
)
def test_word_units(text: str, units: list[str]) -> None:
    assert [text[a:b] for a, b in split_units(text)] == units


def test_tokens_joined_to_text() -> None:
    assert join_tokens(["Ada", "met", "Bob"])[0] == "Ada met Bob"
    assert join_tokens(["江", "泽民", "met", "他", "2", "3"])[0] == "江泽民met他2 3"
    assert join_tokens(list("1998年"))[0] == "1998年"
    text, places = join_tokens(["a", "江", "b", "c"])
    assert [text[a:b] for a, b in places] == ["a", "江", "b", "c"]


# -- CoNLL ------------------------------------------------------------------------------------------------------------


def conll(path: Path, text: str, encoding: str = "auto") -> list[Any]:
    path.write_bytes(text.encode("utf-8" if encoding == "auto" else encoding))
    return list(find_module(Reader, "conll").read(path, encoding))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("between", [" ", "\t", "   "])
def test_conll_file(tmp_path: Path, end: str, between: str) -> None:
    lines = ["-DOCSTART- -X- O", "", "", "EU NNP B-ORG", "rejects VBZ O", "", "江 NR B-nr", " "]
    items = conll(tmp_path / "a.conll", end.join(x.replace(" ", between) for x in lines))
    assert [x.fields for x in items] == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}, {"tokens": ["江"], "tags": ["B-nr"]},
    ]  # fmt: skip
    assert [x.where.line for x in items] == [4, 7]
    with open(tmp_path / "a.conll", "rb") as file:
        file.seek(items[1].where.offset)
        assert file.readline().decode().startswith("江")


def test_conll_bad_lines(tmp_path: Path) -> None:
    """A sentence with a line that cannot be read is put aside as a whole, at that line; the others go on."""
    (tmp_path / "b.bio").write_bytes(b"a O\nb\n\nc O\n\xff O\n\nd O\n")
    items = list(find_module(Reader, "conll").read(tmp_path / "b.bio", "auto"))
    assert [(type(x), x.where.line) for x in items] == [(BadRow, 2), (BadRow, 5), (Record, 7)]
    assert str(items[0].reason) == "1 columns, but the first line of the sentence has 2" and "not utf-8" in str(
        items[1].reason
    )


def test_conll_without_tags_for_prediction(tmp_path: Path) -> None:
    (item,) = conll(tmp_path / "a.conll", "Ada\nmet\n")
    assert item.fields == {"tokens": ["Ada", "met"]}
    assert words(find_inference_mapping([item.fields], TokenTags, None, "f").make(item.fields)) == ["Ada", "met"]


def test_space_token(tmp_path: Path) -> None:
    (item,) = conll(tmp_path / "a.conll", "\u3000 O\n江 B-nr\n")
    assert item.fields == {"tokens": ["\u3000", "江"], "tags": ["O", "B-nr"]}
