"""The questions of weitiao data inspect, one by one, against plain counts."""

import random
import re

import numpy as np
import pytest

from weitiao.core.example import Chat, TextLabel, Turn
from weitiao.data.duplicates.clusters import find_duplicates
from weitiao.data.inspection.answers import OddAnswers
from weitiao.data.inspection.conflicts import Conflicts
from weitiao.data.inspection.excerpts import around, end_of, excerpt
from weitiao.data.inspection.lengths import cut_offs
from weitiao.data.inspection.openings import Openings
from weitiao.data.inspection.repetition import repetition
from weitiao.data.inspection.row_store import RowBatch, RowStore
from weitiao.data.inspection.row_texts import RowTexts, texts_of
from weitiao.data.inspection.sample import Sample
from weitiao.data.inspection.scripts import Scripts
from weitiao.data.inspection.unit_grams import GramSearch
from weitiao.data.inspection.wrong_labels import suspicious, wrong_labels

WORDS = ["apple", "river", "stone", "cloud", "paper", "glass", "tiger", "ocean", "music", "light", "north", "green"]
HAN = "春夏秋冬山水风云天地日月星火土金木草花鸟"


def units_of(text: str) -> list[str]:
    return re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", text.lower())


def sentence(random_: random.Random, length: int) -> str:
    if random_.random() < 0.5:
        return "，".join("".join(random_.choices(HAN, k=4)) for _ in range(length // 4 + 1))
    return " ".join(random_.choices(WORDS, k=length))


def test_gram_search_finds_what_a_plain_loop_finds() -> None:
    random_ = random.Random(1)
    texts = [sentence(random_, random_.randint(5, 60)) for _ in range(300)]
    searched = [sentence(random_, random_.randint(3, 30)) for _ in range(40)]
    for i in range(30):  # parts of texts, with other case and punctuation
        units = units_of(texts[i])
        searched.append("! ".join(units[2 : 2 + random_.randint(6, 20)]).upper())
    expected = set()
    for a, text in enumerate(searched):
        units = units_of(text)
        size = min(len(units), 13)
        if size < 8:
            continue
        grams = {tuple(units[i : i + size]) for i in range(len(units) - size + 1)}
        for b, other in enumerate(texts):
            there = units_of(other)
            present = grams & {tuple(there[i : i + size]) for i in range(len(there) - size + 1)}
            if len(present) >= 0.8 * len(grams):
                expected.add((a, b))
    assert len(expected) > 10
    found = GramSearch(searched).find(texts)
    assert set(found) == expected and len(found) == len(expected)


def test_gram_search_passes_over_what_all_have_in_common() -> None:
    """A footer that every mail has is no leak."""
    footer = "this list is sponsored by a shop for all who think about things like these every day"
    random_ = random.Random(3)
    searched = [f"{' '.join(random_.choices(WORDS, k=30))} {footer}" for _ in range(30)]
    texts = [f"{' '.join(random_.choices(WORDS, k=30))} {footer}", f"Look: {searched[4]} Indeed."]
    assert GramSearch(searched).find(texts) == [(4, 1)]


def test_gram_search_of_nothing() -> None:
    assert GramSearch([]).find(["a b c"]) == []
    assert GramSearch(["", "one two"]).find(["one two", ""]) == []
    assert GramSearch([" ".join(WORDS)]).find(["", "one two"]) == []


def test_suspicious_is_the_off_diagonal_of_the_confident_joint() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.95, 0.05]])
    labels = np.array([0, 0, 1, 1, 1])
    # thresholds: class 0: 0.85; class 1: (0.9 + 0.7 + 0.05) / 3 = 0.55; the last row is above that of class 0 alone
    suggested, margins = suspicious(probabilities, labels)
    assert suggested.tolist() == [-1, -1, -1, -1, 0]
    assert margins[4] == pytest.approx(0.9)


def test_wrong_labels_are_found_and_right_ones_are_not() -> None:
    random_ = random.Random(2)
    topics = {
        "sport": ["match", "team", "goal", "player", "season", "league"],
        "food": ["soup", "bread", "cheese", "dinner", "oven", "salad"],
    }
    texts, labels = [], []
    for i in range(1200):
        name = random_.choice(list(topics))
        texts.append(f"{' '.join(random_.choices(topics[name], k=8))} {i}")
        labels.append(name)
    flipped = set(random_.sample(range(1200), 40))
    for i in flipped:
        labels[i] = "food" if labels[i] == "sport" else "sport"
    result = wrong_labels(texts, labels, np.arange(1200))
    rows = {x["row"] for x in result["worst"]}
    assert len(rows & flipped) >= 0.9 * len(flipped)
    assert len(rows & flipped) >= 0.8 * len(rows)
    assert result["rows"] == len(result["worst"])


def test_no_wrong_labels_without_classes() -> None:
    assert wrong_labels(["a", "b", "c"], ["x", "y", "z"], np.arange(3))["reason"] == "classes"


@pytest.mark.parametrize("size", [10, 100])
def test_sample_is_uniform_and_seeded(size: int) -> None:
    counts = np.zeros(400)
    for seed in range(60):
        sample = Sample(size, seed)
        for first in range(0, 400, 50):
            sample.add(first, list(range(first, first + 50)), [1] * 50)
        rows = sample.rows
        assert all(index == row for index, row in rows)
        assert 0.8 * size <= len(rows) <= size
        counts[[index for index, _ in rows]] += 1
    halves = counts[:200].sum() / counts.sum()
    assert abs(halves - 0.5) < 0.06
    assert Sample(size, 1).rows == []


def test_sample_is_bounded_by_characters() -> None:
    sample = Sample(1000, 1, characters=500)
    sample.add(0, list("x" * 100), [50] * 100)
    assert 1 <= len(sample) <= 10


def test_excerpts_show_no_half_of_a_number() -> None:
    text = "a" * 90 + " 手机13812345678 " + "b" * 200
    for characters in range(80, 130):
        assert "1381" not in excerpt(text, characters) and "5678" not in end_of(text, characters + 150)
    assert "[手机号]" in around(text, 93, 104)
    key = "-----BEGIN RSA PRIVATE KEY-----" + "MIIEpAIBAAKCAQEA7" * 90 + "-----END RSA PRIVATE KEY-----"
    assert "MIIE" not in excerpt(f"my key: {key}")
    assert "QEA7" not in end_of(f"my key: {key}")


def test_store_gives_back_texts_and_places() -> None:
    from weitiao.core.example import SourceLocation

    store, rows = RowStore(), [RowTexts(f"问{i}", f"answer {i}" if i % 3 else "") for i in range(9000)]
    for first in range(0, 9000, 1000):
        batch = RowBatch(first, rows[first : first + 1000])
        store.add(batch, [SourceLocation("a" if first < 5000 else "b", i + 1) for i in range(first, first + 1000)])
    assert store.texts(0) == ("问0", "") and store.texts(8999) == ("问8999", "answer 8999")
    assert [x for batch in store.batches() for x in batch] == [(x.prompt, x.answer) for x in rows]
    assert (store.where(4999).file, store.where(5000).file, store.where(5000).line) == ("a", "b", 5001)


def test_texts_of_a_conversation() -> None:
    turns = (Turn("system", "Be kind."), Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Why?"),
             Turn("user", "Tell"), Turn("assistant", "Because"))  # fmt: skip
    texts = texts_of(Chat(turns))
    assert (texts.prompt, texts.answer, texts.more) == ("Hi\nHello\nWhy?\nTell", "Because", "Be kind.")
    assert texts.turns == 5 and texts.oddities == {"user_again"}
    label = texts_of(TextLabel("x", ("b", "a")))
    assert (label.label, label.classes) == ("a, b", ("b", "a"))


def looked_at(*answers: str, prompt: str = "question") -> dict:
    question = OddAnswers()
    question.add(RowBatch(0, [RowTexts(prompt, x) for x in answers]))
    return question.result()


GOOD = [f"This is a whole sentence. And the answer number {i} ends well." for i in range(20)]


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("First we went there. Then we", "cut"),
        ("第一步打开电源。第二步按下按钮，", "cut"),
        ("他说了很多话。后来我们一起去了新的城市看", "cut"),
        ("Here is the code:\n```python\nprint(1)", "cut"),
        ("TODO", "placeholder"),
        ("暂无", "placeholder"),
        ("。。。", "no_words"),
        ("question", "copy"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("很抱歉，我无法回答这个问题。", "refusal"),
        ("As an AI language model, I have no opinion.", "other_model"),
        ("作为一个人工智能语言模型，我没有观点。", "other_model"),
        ("Sure, it is. \nUser: And then?\nAssistant: Nothing.", "next_turn"),
        ("good good " * 60 + ".", "loop"),
    ],
)
def test_odd_answers(answer: str, kind: str) -> None:
    result = looked_at(*GOOD, answer)
    assert result[kind].listed == [20], {k: result[k] for k in ("cut", kind)}


@pytest.mark.parametrize(
    "answer",
    [
        "The steps are these:\n- open the door\n- close it",
        "The total is the sum of both. The answer is 42",
        "See the page. It is at https://example.org/path",
        "It works. ✓",
        "Sorry for your loss. My thoughts are with you.",
        "好的。",
        "42",
        "She said: I cannot swim, and so she stayed at home.",
        "Artificial intelligence is a field of computer science.",
    ],
)
def test_answers_that_are_not_odd(answer: str) -> None:
    result = looked_at(*GOOD, answer)
    assert not any(
        result[kind].rows for kind in ("cut", "placeholder", "no_words", "copy", "loop", "refusal", "other_model")
    )


def test_answers_without_punctuation_are_not_cut() -> None:
    """Titles, tags: where most answers end with a letter, that says nothing."""
    result = looked_at(*(f"A title of a page. Number {'x' * i}" for i in range(30)))
    assert result["cut"].rows == 0


def test_answers_cut_by_a_limit_of_characters() -> None:
    random_ = random.Random(4)
    cut = [" ".join(random_.choices(WORDS, k=100))[:399] + "x" for _ in range(5)]
    result = looked_at(*cut, *(" ".join(random_.choices(WORDS, k=30)) for _ in range(20)))
    assert result["same_length"] == {"characters": 400, "rows": 5}
    assert result["cut"].rows == 5


def test_openings_of_different_answers() -> None:
    openings = Openings()
    rows = [RowTexts("q", f"Great question! Here is part {i} of it.") for i in range(30)]
    rows += [RowTexts("q", f"Answer {chr(97 + i % 26)}{i} without the phrase") for i in range(70)]
    rows += [RowTexts("q", "The one and only answer that is a class.") for _ in range(40)]
    openings.add(RowBatch(0, rows))
    frequent = openings.result()["frequent"]
    assert [(x["rows"], x["example"]) for x in frequent if x["rows"] == 30] == [(30, 0)]
    assert not any(x["rows"] == 40 for x in frequent)


def test_conflicts_fold_texts_and_name_groups() -> None:
    conflicts = Conflicts()
    rows = [("Good film", "pos"), ("good  ＦＩＬＭ", "neg"), ("bad", "neg"), ("bad", "neg"), ("臺灣", "a"), ("台湾", "b")]
    conflicts.add(RowBatch(0, [RowTexts(text, "", label, (label,)) for text, label in rows]))
    result = conflicts.result()
    assert result["labels"].listed == [0, 1, 4, 5]
    assert result["label_groups"] == {"groups": 2, "examples": [[0, 1], [4, 5]]}
    assert result["answers"].rows == 0


def test_repetition_leaves_other_labels_apart() -> None:
    texts = [*["一个完全相同的句子"] * 3, "another text that is long enough to compare",
             "another text that is long enough to compare!"]  # fmt: skip
    result = repetition(find_duplicates(texts), np.array([0, 0, 1, 2, 3]))
    assert (result["exact"].listed, result["near"].listed, result["other_label"].listed) == ([1], [], [4])
    assert [x["rows"] for x in result["clusters"]] == [3, 2]


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("用 Python 写一个函数", "han"),
        ("これはペンです", "kana"),
        ("Привет", "cyrillic"),
        ("12 + 3 = 15", "none"),
        ("A whole English sentence with 一 character", "latin"),
        ("안녕하세요", "hangul"),
    ],
)
def test_main_script(text: str, script: str) -> None:
    scripts = Scripts()
    scripts.add(RowBatch(0, [RowTexts(text)]))
    assert scripts.result()["main"] == {script: 1}


def test_traditional_and_lost_characters() -> None:
    scripts = Scripts()
    scripts.add(RowBatch(0, [RowTexts("這個問題沒有答案"), RowTexts("这个问题没有答案"), RowTexts("broken \ufffd here")]))
    result = scripts.result()
    assert (result["han"], result["traditional"], result["lost"].listed) == (2, 1, [2])


def test_cut_offs() -> None:
    table = cut_offs(np.array([100, 200, 300, 600]), 4)
    assert [(x["max_length"], x["rows"]) for x in table] == [(128, 3), (256, 2), (512, 1), (1024, 0)]
    assert all(x["low"] == x["share"] == x["high"] for x in table)
    sampled = cut_offs(np.array([100, 200, 300, 600]), 400)
    assert sampled[0]["low"] < 0.75 < sampled[0]["high"]
    assert table[2]["tokens"] == pytest.approx(88 / 1200)
