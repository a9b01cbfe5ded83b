"""Every column is accounted for: read, named as not read, or refused by name where it changes what a row means."""

import json
from collections.abc import Mapping as MappingType
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from weitiao.core.errors import DataError
from weitiao.core.example import Chat, ExtractiveQA, Pair, SourceTarget, Text, TextLabel, TextScore, TokenTags
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find_module, names
from weitiao.data.columns import Mapping
from weitiao.data.mapping import find_mapping
from weitiao.data.read import Reading, read_sources

RECORDS: dict[str, list[dict[str, Any]]] = {  # rows that each mapping reads
    "chat": [
        {"prompt": "ask", "completion": "say", "system": "kind"},
        {"instruction": "ask", "input": "more", "output": "say", "history": [["a", "b"]]},
        {"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "say"}]},
    ],
    "extractive_qa": [
        {
            "question": "who?",
            "context": "by Goya",
            "answers": {"text": ["Goya"], "answer_start": [3]},
            "is_impossible": False,
        },
        {"question": "who?", "context": "by Goya", "answer": "Goya", "start": 3},
    ],
    "pair": [{"query": "a", "document": "b", "negative": "c"}, {"sentence1": "a", "sentence2": "b", "label": 0}],
    "source_target": [{"source": "a", "target": "b"}],
    "text": [{"text": "words"}],
    "text_label": [{"text": "words", "label": "x"}],
    "text_score": [{"text": "words", "score": 1}, {"sentence1": "a", "sentence2": "b", "label": 0.5}],
    "token_tags": [{"tokens": ["a"], "tags": ["O"]}, {"text": "a b", "entities": [[0, 1, "x"]]}],
}


def reading_of(path: Path, rows: list[dict], objective: str = "sft", **settings: Any) -> Reading:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_sources([Source(path=str(path), **settings)], create("objective", objective), 1.0)


def house(i: int) -> dict[str, str]:
    return {"question": f"Which colour is door {i}?", "context": f"House {i} has a green door.", "answer": "green"}


class Watched(dict):
    """A record that knows which of its columns were looked at."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.columns: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.columns.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.columns |= {key} & self.keys()
        return super().get(key, default)


def test_every_mapping_has_its_rows() -> None:
    assert set(RECORDS) == set(names(Mapping))


@pytest.mark.parametrize(("mapping", "record"), [(name, x) for name, rows in RECORDS.items() for x in rows])
def test_what_is_read_is_what_is_declared(mapping: str, record: dict, tmp_path: Path) -> None:
    module = find_module(Mapping, mapping)
    chosen = module.infer_columns(record)[0]
    watched = Watched(record)
    chosen.make(watched)
    assert watched.columns == set(chosen.reads) & record.keys()
    assert set(record) <= set(chosen.reads)
    more = {"a note": "words that nobody reads", "number": 3, "empty": None, "nothing": float("nan"), "blank": " "}
    reading = reading_of(tmp_path / "x.jsonl", [{**record, **more}] * 2, module.OBJECTIVE)
    (notice,) = (str(x) for x in reading.columns[0].notices())
    assert notice == f"{tmp_path}/x.jsonl: {chosen.description}; not read: a note (text in 2 of 2 rows), number"
    assert [x.level for x in reading.findings()] == ["fine"]


def test_nothing_is_said_where_all_is_read(tmp_path: Path) -> None:
    reading = reading_of(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b", "note": ""}])
    assert not list(reading.columns[0].notices()) and not reading.findings()


def test_context_of_a_question_is_named(tmp_path: Path) -> None:
    (use,) = reading_of(tmp_path / "x.jsonl", [house(i) for i in range(24)]).columns
    assert [str(x) for x in use.notices()] == [
        f"{tmp_path}/x.jsonl: question -> answer; not read: context (text in 24 of 24 rows)"
    ]
    columns = {"prompt": "question", "context": "context", "completion": "answer"}
    reading = reading_of(tmp_path / "x.jsonl", [house(7)], columns=columns)
    example: Any = reading.examples[0].example
    assert example.turns[0].content == "Which colour is door 7?\nHouse 7 has a green door." and not reading.findings()


def test_check_names_what_is_not_read(recipe_file: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({**house(i), "id": i}) + "\n" for i in range(24)))
    code, output = weitiao("check", recipe_file(data=str(rows), validation=0))
    assert code == 0, output
    assert "rows.jsonl: question -> answer; not read: context (text in 24 of 24 rows), id" in output
    code, output = weitiao("train", recipe_file(data=str(rows), validation=0))
    assert code == 0 and "not read: context (text in 24 of 24 rows), id" in output
    record = json.loads((tmp_path / "run" / "resolved.json").read_text())["columns"][str(rows)]
    assert record["not_read"] == {"context": {"rows": 24, "text": 24}, "id": {"rows": 24, "text": 0}}
    assert "not read: context (text in 24 of 24 rows), id" in (tmp_path / "run" / "report.html").read_text()


# -- columns that change what a row means ------------------------------------------------------------------------------


def test_refused_and_allowed_on_the_command_line(recipe_file: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "ask", "completion": "say", "rejected": "shout"}
    rows.write_text("".join(json.dumps({**row, "prompt": f"ask {i}"}) + "\n" for i in range(8)))
    code, output = weitiao("train", recipe_file(data=str(rows), validation=0))
    assert (
        code == 2 and "line 1: column 'rejected' is shout, which changes what the row means, and it is not read" in output
    )
    assert "--allow columns" in output
    code, output = weitiao("train", recipe_file(data=str(rows), validation=0), "--allow", "columns", "--overwrite")
    assert code == 0, output


@pytest.mark.parametrize(
    ("objective", "record", "column", "value"),
    [
        ("sft", {"prompt": "a", "completion": "b"}, "rejected", "c"),
        ("sft", {"prompt": "a", "completion": "b"}, "images", ["x.png"]),
        ("sft", {"prompt": "a", "completion": "b"}, "label", False),
        ("sft", {"prompt": "a", "completion": "b"}, "weight", 0.5),
        ("causal_lm", {"text": "a"}, "weight", 3),
        ("embedding", {"query": "a", "document": "b"}, "hard_negative_1 of 2", None),
        ("classification", {"text": "a", "label": "x"}, "answer", "reject"),
        ("token_classification", {"text": "a b", "entities": [[0, 1, "x"]]}, "answer", "ignore"),
    ],
)  # fmt: skip
def test_column_that_changes_the_meaning_is_refused(
    objective: str, record: dict, column: str, value: Any, tmp_path: Path
) -> None:
    rows = [record, {**record, column: value}]
    findings = [x for x in reading_of(tmp_path / "x.jsonl", rows, objective).findings() if x.level == "error"]
    if value is None:
        assert not findings
        return
    (finding,) = findings
    assert finding.name == "columns" and f"x.jsonl, line 2: column {column!r} is {value}" in str(finding.message)


@pytest.mark.parametrize(
    ("column", "value"),
    [("rejected", ""), ("images", []), ("label", True), ("weight", 1), ("tools", "[]"), ("history", [])],
)
def test_column_that_changes_nothing_is_fine(column: str, value: Any, tmp_path: Path) -> None:
    reading = reading_of(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b", column: value}])
    assert [x.level for x in reading.findings()] in ([], ["fine"])


def test_label_of_a_pair_is_refused_whatever_the_columns(tmp_path: Path) -> None:
    rows = [{"a": "x", "b": "y", "is_duplicate": i % 2} for i in range(4)]
    columns = {"query": "a", "document": "b"}
    (finding,) = (
        x for x in reading_of(tmp_path / "x.jsonl", rows, "embedding", columns=columns).findings() if x.level != "fine"
    )
    assert finding.level == "error" and "column 'is_duplicate' is 0" in str(finding.message)


def test_rejected_answers_may_be_left_out_by_name(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    columns = {"prompt": "prompt", "completion": "chosen"}
    assert "warning" in [x.level for x in reading_of(tmp_path / "x.jsonl", rows, columns=columns).findings()]


@pytest.mark.parametrize("flag", [{"train": False}, {"loss": False}, {"weight": 0}, {"trainable": "false"}])
def test_row_that_is_not_to_be_trained_on_is_left_out(flag: dict, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", **flag}]
    reading = reading_of(tmp_path / "x.jsonl", rows)
    assert [x.example.answer for x in reading.examples] == ["b"] and not reading.bad
    column = next(iter(flag))
    assert f"1 of 2 rows are left out: column {column!r} marks them" in " ".join(map(str, reading.columns[0].notices()))


def test_file_with_all_splits_is_told(tmp_path: Path) -> None:
    rows = [{"text": "a b", "label": x, "split": y} for x, y in (("p", "train"), ("q", "test"))]
    messages = [str(x.message) for x in reading_of(tmp_path / "x.jsonl", rows, "classification").findings()]
    assert any("column 'split' divides the rows (test, train)" in x for x in messages)
    parts = [{"text": "a b", "label": x, "subset": y} for x, y in (("p", "maths"), ("q", "code"))]
    assert [x.level for x in reading_of(tmp_path / "x.jsonl", parts, "classification").findings()] == ["fine"]


# -- missing values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  ", "<noinput>", "<NoInput>"])
def test_missing_input_is_no_text(empty: Any) -> None:
    record = {"instruction": "Say hi", "input": empty, "output": "hi", "system": float("nan")}
    example: Any = find_mapping([{**record, "input": "x"}], Chat, None, "f").make(record)
    assert [(x.role, x.content) for x in example.turns] == [("user", "Say hi"), ("assistant", "hi")]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Add them", "input": ["2", "3"], "output": "5"},
        {"instruction": "Add them", "input": {"a": 1}, "output": "5"},
        {"instruction": "Add them", "input": "", "output": "5", "system": ["be", "kind"]},
        {"instruction": "Add them", "input": "", "output": float("inf")},
    ],
)
def test_list_in_a_text_cell_is_a_bad_row(record: dict, tmp_path: Path) -> None:
    good = {"instruction": "Say hi", "input": "now", "output": "hi", "system": "kind"}
    reading = reading_of(tmp_path / "x.jsonl", [good, record])
    assert len(reading.examples) == 1 and "column '" in str(reading.bad[0].reason)


def test_placeholder_words_are_counted(tmp_path: Path) -> None:
    rows = [
        {"instruction": "a", "input": x, "output": y} for x, y in (("<noinput>", "b"), ("<noinput>", "c"), ("d", "nan"))
    ]
    findings = {str(x.message): x.level for x in reading_of(tmp_path / "x.jsonl", rows).findings()}
    text = "x.jsonl: column {!r} is {!r} in {} of 3 rows, which usually means that it is empty"
    assert findings[f"{tmp_path}/{text.format('input', '<noinput>', 2)}"] == "fine"
    assert findings[f"{tmp_path}/{text.format('output', 'nan', 1)}"] == "warning"


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "kind", "description"),
    [
        ({"评论": "好看", "情感": "正面"}, TextLabel, "评论 -> class: 情感"),
        ({"正文": "x y", "标题": "t", "类别": "a"}, TextLabel, "正文 -> class: 类别"),
        ({"Review Text": "x", "Review": "x", "Category": "a"}, TextLabel, "Review -> class: Category"),
        ({" Text": "x", "LABEL": "a"}, TextLabel, " Text -> class: LABEL"),
        ({"指令": "a", "输入": "b", "输出": "c"}, Chat, "指令 + 输入 -> 输出 (Alpaca)"),
        ({"instruction": "a", "context": "b", "response": "c", "category": "d"}, Chat,
         "instruction + context -> response (Alpaca)"),
        ({"问题": "a", "回答": "b"}, Chat, "问题 -> 回答"),
        ({"问": "a", "答": "b", "系统": "c"}, Chat, "问 -> 答, system: 系统"),
        ({"原文": "a", "译文": "b"}, SourceTarget, "原文 -> 译文"),
        ({"正文": "a", "摘要": "b"}, SourceTarget, "正文 -> 摘要"),
        ({"文本": "a"}, Text, "文本"),
        ({"查询": "a", "文档": "b"}, Pair, "查询 <-> 文档"),
        ({"句子1": "a", "句子2": "b", "相似度": "0.5"}, Pair, "句子1 <-> 句子2, score: 相似度"),
        ({"句子1": "a", "句子2": "b", "得分": 3}, TextScore, "句子1 + 句子2 -> number: 得分"),
        ({"文本": "a", "评分": 3}, TextScore, "文本 -> number: 评分"),
        ({"问题": "谁?", "上下文": "是他", "答案": "他"}, ExtractiveQA, "问题 + 上下文 -> 答案"),
        ({"文本": "ab", "实体": [[0, 2, "x"]]}, TokenTags, "文本 -> tags: 实体"),
    ],
)  # fmt: skip
def test_names_recognized(record: dict, kind: type, description: str) -> None:
    mapping = find_mapping([record], kind, None, "f")
    assert mapping.description == description
    mapping.make(record)


def test_chinese_table(tmp_path: Path) -> None:
    (tmp_path / "评论.csv").write_text("评论,情感\n好看,正面\n难看,负面\n", encoding="utf-8-sig")
    source = Source(path=str(tmp_path / "评论.csv"))
    reading = read_sources([source], create("objective", "classification"), 0.0)
    assert [x.example for x in reading.examples] == [TextLabel("好看", ("正面",)), TextLabel("难看", ("负面",))]


def test_dolly_prompt_holds_the_context() -> None:
    record = {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada"}
    example: MappingType | Any = find_mapping([record], Chat, None, "f").make(record)
    assert example.turns[0].content == "Who?\nAda wrote it."


def test_columns_of_late_rows_are_read_or_named(tmp_path: Path) -> None:
    first = [{"instruction": "a", "output": "b"}] * 60
    late = {
        "instruction": "Add",
        "input": "2, 3",
        "output": "5",
        "system": "kind",
        "history": [["x", "y"]],
        "rejected": "6",
    }
    reading = reading_of(tmp_path / "x.jsonl", [*first, late])
    example: Any = reading.examples[-1].example
    assert [x.content for x in example.turns] == ["kind", "x", "y", "Add\n2, 3", "5"]
    assert [x.level for x in reading.findings()] == ["error", "fine"]


@pytest.mark.parametrize("blank", ["", " \n", "\u3000", "\u200b", "\ufeff \u200d"])
def test_invisible_text_is_no_text(blank: str, tmp_path: Path) -> None:
    rows = [{"text": "a", "label": "x"}, {"text": blank, "label": "y"}, {"text": "b", "label": blank}]
    reading = reading_of(tmp_path / "x.jsonl", rows, "classification")
    assert [str(x.reason) for x in reading.bad] == ["the text is empty", "column 'label' is empty: the row has no class"]


def test_table_without_a_header_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("great film,1\nbad film,0\n")
    with pytest.raises(DataError, match="its columns are: 1, great film.*The first line of a table must hold the names"):
        read_sources([Source(path=str(tmp_path / "x.csv"))], create("objective", "classification"), 0.0)


def test_column_of_no_use_is_refused() -> None:
    with pytest.raises(DataError, match="no columns of a prompt and its completion found"):
        find_mapping([{"foo": "a", "bar": "b"}], Chat, None, "f")
