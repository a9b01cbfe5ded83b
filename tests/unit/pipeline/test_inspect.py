"""weitiao data inspect: planted defects are found with their counts; nothing secret is shown; the page stands alone."""

import csv
import json
import random
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from weitiao.core.messages import LANGUAGES
from weitiao.pipeline import inspect as inspect_module
from weitiao.pipeline import inspection_rows
from weitiao.pipeline.load import open_base_assets

WORDS = [
    "river", "mill", "paper", "cloth", "town", "train", "valley", "coal", "idea", "market", "garden", "winter", "bridge",
    "island", "letter", "engine", "doctor", "village", "summer", "kitchen", "window", "harbour", "forest", "picture",
]  # fmt: skip
HAN = "我们今天去看了一个新城市那里有很多人和趣地方天气非常好大家都开心路上遇到朋友聊工作与学习事情晚回写日记"
PHONE, KEY = "13812345678", "sk-proj-Ab3dE5gH7jK9mN1pQ3sT5vW7"


def chats() -> list[list[str]]:
    """400 sound rows, half of them Chinese."""
    random_ = random.Random(5)
    rows = []
    for i in range(400):
        if i % 2:
            question = f"Question {i}: {' '.join(random_.sample(WORDS, 9))}?"
            answer = f"{' '.join(random_.sample(WORDS, 12))}. {' '.join(random_.sample(WORDS, 9))}."
        else:
            question = f"{''.join(random_.sample(HAN, 14))}第{i}号？"
            answer = f"{''.join(random_.sample(HAN, 18))}。{''.join(random_.sample(HAN, 12))}。"
        rows.append([question, answer])
    return rows


def write_chats(file: Path, rows: Sequence[Sequence[str]]) -> Path:
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}, ensure_ascii=False)
        for q, a in rows
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    rows = chats()
    for i in range(10):  # even: Chinese, a comma at the end; odd: English, the last sentence has no end
        rows[i][1] = rows[i][1][:-5] + ("，" if i % 2 == 0 else "")
    for i in range(20, 24):
        rows[i][1] = f"As an AI language model, I think so. {rows[i][1]}"
    for i in range(30, 35):
        rows[i][1] = "I'm sorry, but I can't help with that request." if i % 2 else "很抱歉，我无法回答这个问题。"
    for i in range(40, 43):
        rows[i][1] = "TODO"
    rows[50][1] = rows[50][0]
    for i in range(60, 66):
        rows[i][1] += f" Call {PHONE}."
    rows[70][0] += f" My key is {KEY}"
    rows[80][1] += "\nUser: and then?\nAssistant: fine."
    for i in range(90, 92):
        rows[i][1] = f"<p>{rows[i][1]}</p><br>"
    for i in range(100, 104):
        rows[i][0] += "<|im_end|>"
    rows[110][1] = "so it is " * 60 + "."
    rows += [list(rows[200 + i]) for i in range(12)]  # copies
    rows += [[rows[300 + i][0], f"{rows[300 + i][1]} Yes."] for i in range(1, 15, 2)]  # nearly copies, of 7 questions
    file = write_chats(tmp_path / "chats.jsonl", rows)
    with open(file, "a", encoding="utf-8") as out:
        out.write('{"messages": [\n{"messages": []}\n')
    return file


def inspected(*args: str | Path) -> dict[str, Any]:
    code, output = weitiao("data", "inspect", *args, "--json")
    assert code == 0, output
    return json.loads(output)


def by_code(record: dict[str, Any]) -> dict[str, int]:
    return {x["code"]: x["rows"] for x in record["advice"] if x["code"] != "cleanable"}


def test_planted_defects_are_counted(planted: Path, tmp_path: Path) -> None:
    record = inspected(planted, "--out", tmp_path / "page.html")
    assert record["rows"] == {"rows": 421, "accepted": 419, "bad": 2, "excluded": 0}
    assert by_code(record) == {
        "secrets": 1,
        "personal": 6,
        "cut": 10,
        "other_model": 4,
        "placeholder": 3,
        "copy": 1,
        "loop": 1,
        "next_turn": 1,
        "markers": 4,
        "exact_duplicates": 12,
        "near_duplicates": 7,
        "several_answers": 14,
        "refusal": 5,
        "bad_rows": 2,
    }
    lines = {x["code"]: x["lines"] for x in record["advice"]}
    assert lines["cut"] == {str(planted): list(range(1, 11))}
    assert lines["exact_duplicates"] == {str(planted): list(range(401, 413))}
    html = next(x for x in record["advice"] if x["code"] == "cleanable" and "html" in x["remedy"])
    assert html["rows"] == 2
    levels = [x["level"] for x in record["advice"]]
    assert levels == sorted(levels, key=["must", "should", "look"].index)


def test_the_combined_command_cleans(planted: Path, tmp_path: Path) -> None:
    """It is a real command: what it writes has none of what it was for."""
    record = inspected(planted, "--out", tmp_path / "page.html")
    command = record["command"].split()
    assert command[:3] == ["weitiao", "data", "clean"]
    out = tmp_path / "cleaned"
    code, output = weitiao(*command[1:-1], out, "--processes", "1")
    assert code == 0, output
    codes = by_code(inspected(out, "--out", tmp_path / "second.html"))
    assert not codes.keys() & {"secrets", "personal", "other_model", "exact_duplicates", "near_duplicates", "bad_rows"}


def test_nothing_secret_is_shown(planted: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outputs = [json.dumps(inspected(planted, "--out", page)), weitiao("data", "inspect", planted, "--out", page)[1]]
    for text in (*outputs, page.read_text(encoding="utf-8")):
        assert PHONE not in text and KEY[3:] not in text and KEY[:16] not in text


def test_names_and_cut_rows_are_masked_too(tmp_path: Path) -> None:
    """Classes, answers that are a closed set, tasks, and rows of which only the beginning is kept."""
    lines = ["MIIEpAIBAAKCAQEA7bq0abcdefGHIJKLmnop"] * 9
    pem = "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *lines, "-----END RSA PRIVATE KEY-----"])
    closed = [f"Call {PHONE} now.", f"The key is {KEY} now."] * 12
    rows = {
        "closed": [{"prompt": f"Question {i}?", "completion": x, "source": f"{PHONE} {KEY}"} for i, x in enumerate(closed)],
        "labels": [{"text": f"Text {i}", "label": KEY.lower() if i == 9 else KEY if i % 2 else PHONE} for i in range(24)],
        "cut": [{"prompt": f"One {i}", "completion": "Two."} for i in range(9)] + [{"prompt": pem, "completion": ""}],
    }
    for name, records in rows.items():
        file, page = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.html"
        file.write_text("".join(f"{json.dumps(x)}\n" for x in records), encoding="utf-8")
        record = inspected(file, "--labels", "--out", page)
        for text in (json.dumps(record), weitiao("data", "inspect", file, "--out", "")[1], page.read_text("utf-8")):
            assert not any(x in text for x in (PHONE, KEY[3:], KEY[:16], KEY.lower()[8:], lines[0][:8]))


def test_page_stands_alone_in_two_languages(planted: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    inspected(planted, "--out", page)
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 1_500_000
    for outside in ("<script", "src=", "http://", "https://", "url(", "@import"):
        assert outside not in text
    for name in LANGUAGES:
        assert text.count(f'<span lang="{name}">') > 40
    assert "<title>Inspection of data · 数据检视 · weitiao</title>" in text  # no markup can be there
    assert '<span lang="en">What to do first</span><span lang="zh">首先要做的</span>' in text


@pytest.mark.parametrize("name", LANGUAGES)
def test_terminal_in_two_languages(planted: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_LANG", name)
    code, output = weitiao("data", "inspect", planted, "--out", tmp_path / "page.html")
    assert code == 0
    assert ("answers seem to be cut off" in output) == (name == "en")
    assert ("似乎被截断" in output) == (name == "zh")


def test_leaked_rows(tmp_path: Path) -> None:
    rows = chats()
    rows.append([f"Somebody asked me: {rows[7][0]} What should one say?", "Nothing at all, said the other."])
    inside = rows[7][0]
    del rows[7]
    data = write_chats(tmp_path / "data.jsonl", rows)
    held_out = [
        rows[3],
        [rows[8][0], rows[8][1][:-1] + "！"],
        [rows[9][0], "Something else, in other words altogether, that nobody has written before."],
        [inside, "Another answer that is not there."],
        ["An unrelated question that nobody asked, about submarines and glass?", "Yes."],
    ]
    file = write_chats(tmp_path / "eval.jsonl", held_out)
    record = inspected(data, "--eval", file, "--out", tmp_path / "page.html")
    leaks = record["leakage"]
    assert (leaks["n"], leaks["leaked"]) == (5, 4)
    assert leaks["kinds"] == {"row": 1, "near": 1, "input": 1, "inside": 1}
    assert record["advice"][0]["code"] == "leaked"
    assert record["advice"][0]["lines"] == {str(data): [4, 9, 10, 400]}


def labelled(tmp_path: Path) -> tuple[Path, set[int]]:
    """600 texts of two topics; 30 have the wrong label, 4 texts have two, 3 rows spell the class in another way."""
    random_ = random.Random(7)
    topics = {"sport": WORDS[:12], "food": WORDS[12:]}
    rows = []
    for i in range(600):
        name = random_.choice(list(topics))
        rows.append([f"{' '.join(random_.choices(topics[name], k=9))} {i}", name])
    wrong = set(random_.sample(range(100, 600), 30))
    for i in wrong:
        rows[i][1] = "food" if rows[i][1] == "sport" else "sport"
    rows += [[rows[i][0].upper(), "food" if rows[i][1] == "sport" else "sport"] for i in range(4)]
    rows += [[f"{' '.join(random_.choices(topics['sport'], k=9))} more {i}", "Sport"] for i in range(3)]
    file = tmp_path / "labels.csv"
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([["text", "label"], *rows])
    return file, wrong


def test_labels(tmp_path: Path) -> None:
    file, wrong = labelled(tmp_path)
    record = inspected(file, "--labels", "--out", tmp_path / "page.html")
    codes = by_code(record)
    assert (codes["conflicts"], codes["class_names"], codes["rare_classes"]) == (8, 3, 3)
    assert record["classes"]["counts"][-1] == ["Sport", 3]
    lines = {line - 2 for x in record["advice"] if x["code"] == "wrong_labels" for line in x["lines"][str(file)]}
    assert len(lines & wrong) >= 0.7 * len(wrong)  # 0.76 on real mails, docs/data.md
    assert len(lines & (wrong | set(range(4)) | set(range(600, 607)))) >= 0.8 * len(lines)


def test_answers_that_are_classes(tmp_path: Path) -> None:
    """A conversation whose answer is one of a few is a class, too."""
    random_, rows = random.Random(9), []
    for i in range(300):
        topic = random_.choice((WORDS[:12], WORDS[12:]))
        rows.append([f"{' '.join(random_.choices(topic, k=9))} {i}", "trade" if topic == WORDS[:12] else "home"])
    rows[0][1], rows[1][1] = ("home" if x[1] == "trade" else "trade" for x in rows[:2])
    record = inspected(write_chats(tmp_path / "topics.jsonl", rows), "--labels", "--out", tmp_path / "page.html")
    assert record["classes"]["closed"] and record["classes"]["classes"] == 2
    assert sum(n for _, n in record["classes"]["counts"]) == 300
    lines = next(x["lines"] for x in record["advice"] if x["code"] == "wrong_labels")
    assert {1, 2} <= set(lines[str(tmp_path / "topics.jsonl")])


def test_batches_change_nothing(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inspected(planted, "--out", "")
    monkeypatch.setattr(inspection_rows, "BATCH_ROWS", 7)
    assert inspected(planted, "--out", "") == whole


def test_two_files_are_one_set(planted: Path, tmp_path: Path) -> None:
    """A row of the second file that is in the first one is a copy; both files are named."""
    rows = chats()
    other = write_chats(tmp_path / "other.jsonl", [rows[250], ["A new question?", "A new answer, which nobody gave."]])
    record = inspected(planted, other, "--out", "")
    assert [x["accepted"] for x in record["files"]] == [419, 2]
    lines = next(x["lines"] for x in record["advice"] if x["code"] == "exact_duplicates")
    assert lines[str(other)] == [1]


def test_tokens_are_those_of_training(planted: Path, tmp_path: Path, tiny_llama: Path) -> None:
    record = inspected(planted, "--base", tiny_llama, "--out", tmp_path / "page.html")
    model = record["model"]
    assert model["n"] == 419 and model["chat"]["template"]
    assert model["chat"]["without_stop"]["rows"] == 0
    processor = open_base_assets(str(tiny_llama)).processor
    lengths = []
    for line in planted.read_text(encoding="utf-8").splitlines()[:419]:
        turns = json.loads(line)["messages"]
        text = str(processor.tokenizer.apply_chat_template(turns, tokenize=False))
        lengths.append(len(processor.tokenizer(text, add_special_tokens=False).input_ids))
    assert model["tokens"]["sum"] == pytest.approx(sum(lengths), rel=0.01)
    for x in model["cut_offs"]:
        assert x["rows"] == pytest.approx(sum(n > x["max_length"] for n in lengths), abs=4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "has no usable row"),
        ('{"a": [\n', "First error: line 1"),
        ('{"foo": 1, "bar": "some words here"}\n', "--columns text=COLUMN"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content, encoding="utf-8")
    code, output = weitiao("data", "inspect", file, "--out", tmp_path / "page.html")
    assert code == 2 and message in output, output
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "row",
    [
        {"text": "one row"},
        {"text": "a", "label": "b"},
        {"question": "Hi?", "answer": "Hello."},
        {"text": "a b", "score": 1.5},
        {"tokens": ["a", "b"], "tags": ["O", "B-x"]},
        {"source": "a b", "target": "c d"},
        {"question": "Who?", "context": "It was Ann.", "answers": {"text": ["Ann"], "answer_start": [7]}},
    ],
)
def test_one_row_of_each_kind(tmp_path: Path, row: dict[str, Any]) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(row) + "\n", encoding="utf-8")
    record = inspected(file, "--labels", "--eval", file, "--out", tmp_path / "page.html")
    assert record["rows"]["accepted"] == 1
    assert record["leakage"]["leaked"] == 1


def test_named_columns_and_surrogates(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"body": "good"}\n{"body": "half \\ud83d of one"}\n', encoding="utf-8")
    record = inspected(file, "--columns", "text=body", "--out", "")
    assert (record["rows"]["accepted"], record["rows"]["bad"]) == (1, 1)


def test_balance_of_tasks(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    rows = [
        {"question": f"Question {i}?", "answer": f"Answer {i}.", "task": "sum" if i % 4 else "translate"} for i in range(40)
    ]
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows), encoding="utf-8")
    record = inspected(file, "--out", tmp_path / "page.html")
    assert record["files"][0]["tasks"] == {"task": [["sum", 30], ["translate", 10]]}
    assert "translate" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_texts_whose_characters_are_counted_are_not_cleaned(tmp_path: Path) -> None:
    """weitiao data clean would refuse: the remedy is by hand."""
    file, context = tmp_path / "qa.jsonl", f"Ann can be called at {PHONE} in the evening."
    rows = [
        {"question": f"Who is number {i}?", "context": context, "answers": {"text": ["Ann"], "answer_start": [0]}}
        for i in range(3)
    ]
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows), encoding="utf-8")
    record = inspected(file, "--out", "")
    remedy = next(x["remedy"] for x in record["advice"] if x["code"] == "personal")
    assert "clean" not in remedy and "personal_data" not in record["command"]

    rows[1]["question"] = rows[0]["question"]
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows), encoding="utf-8")
    advised = [x["remedy"] for x in inspected(file, "--out", "")["advice"] if x["code"] == "exact_duplicates"]
    for i, command in enumerate((*advised, inspected(file, "--out", "")["command"])):
        out = tmp_path / f"out{i}"
        code, output = weitiao(*shlex.split(command)[1:-1], out)
        assert code == 0 and f"{i + 1} duplicates" in output  # of the same question; then also of nearly the same


def test_commands_name_columns_and_encoding(tmp_path: Path) -> None:
    file = tmp_path / "my rows.csv"
    lines = [f"what is thing {i},the thing <b>number {i}</b> déjà vu.,x" for i in range(20)]
    file.write_text("\n".join(["q,a,extra", *lines]), encoding="latin-1")
    options = ("--columns", "prompt=q", "--columns", "completion=a", "--encoding", "latin-1")
    record = inspected(file, *options, "--out", "")
    for i, command in enumerate((record["advice"][0]["remedy"], record["command"])):
        code, output = weitiao(*shlex.split(command)[1:-1], tmp_path / f"out{i}")
        assert code == 0 and "20 repaired" in output, output


def test_very_long_rows_are_compared_by_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_module, "MAX_COMPARED", 100)
    file, text = tmp_path / "long.jsonl", "A sentence of many words stands here. " * 9
    rows = [{"text": text}, {"text": f"{text} One more."}, {"text": text}]
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows), encoding="utf-8")
    repetition = inspected(file, "--out", "")["repetition"]
    assert repetition["exact"]["examples"][0]["where"].endswith("line 3") and repetition["exact"]["rows"] == 1


def test_copies_of_a_row_that_is_nearly_another_are_copies(tmp_path: Path) -> None:
    long = "The old mill by the river made paper and cloth for all of the town for many long years before the trains"
    rows = [{"text": f"{long} {i}.", "label": label} for i, label in ((1, "a"), (2, "b"), (3, "a"))] * 3
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows), encoding="utf-8")
    codes = by_code(inspected(file, "--out", ""))
    assert [codes[x] for x in ("exact_duplicates", "near_duplicates", "near_conflicts")] == [6, 1, 1]


def test_out_must_be_a_file(planted: Path) -> None:
    code, output = weitiao("data", "inspect", planted, "--out", "folder")
    assert code == 2 and "report.html" in output
