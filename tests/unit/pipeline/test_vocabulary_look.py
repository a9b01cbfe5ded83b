"""`weitiao data vocab`: measured on rows that nothing was learnt from, and what it proposes."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from support.models import save_model
from support.rows import write_jsonl

WORDS = ("图书馆", "猫咪", "我们", "喜欢", "电脑", "手机", "今天", "天气", "看书", "朋友")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("base") / "llama"))


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """Two hundred different sentences of ten words, and twenty in English."""
    rows = [{"text": f"{WORDS[i % 10]}和{WORDS[i // 10 % 10]}，{WORDS[(i * 7 + i // 100) % 10]}{i}"} for i in range(200)]
    rows += [{"text": f"the fox asks for Kubernetes number {i}"} for i in range(20)]
    return str(write_jsonl(tmp_path / "texts.jsonl", rows))


def look(*arguments: str) -> dict[str, Any]:
    code, text = weitiao("data", "vocab", *arguments, "--json")
    assert code == 0, text
    return json.loads(text[text.index("{") :])


def test_measured_on_held_out_rows(base: str, texts: str) -> None:
    record = look(texts, "--base", base, "--add", "20", "--add", "5", "--add", "9999")
    assert record["rows"] == 220 and record["held_out"]["all"]["rows"] == 22
    assert record["scripts"] == ["han"]
    adds = [x["add"] for x in record["gains"]]
    assert adds[:2] == [5, 20] and 20 < adds[2] < 9999  # what there is to learn
    values = [record["before"]["tokens_per_character"], *(x["tokens_per_character"] for x in record["gains"])]
    assert values == sorted(values, reverse=True) and values[-1] < values[0] / 2
    assert all(x["fault"] is None and x["low"] <= x["tokens_per_character"] <= x["high"] for x in record["gains"])
    assert record["recipe"]["vocabulary"]["add"] in adds
    assert any(x["text"] == "Kubernetes" for x in record["latin_terms"])
    assert {x["text"] for x in record["terms"]} & {*WORDS}


def test_the_order_of_rows_does_not_matter(base: str, texts: str, tmp_path: Path) -> None:
    lines = Path(texts).read_text(encoding="utf-8").splitlines(keepends=True)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join([*reversed(lines), lines[0]]), encoding="utf-8")
    first, second = (look(x, "--base", base, "--add", "20") for x in (texts, str(turned)))
    assert first == second


def test_shown(base: str, texts: str) -> None:
    code, text = weitiao("data", "vocab", texts, "--base", base, "--add", "30")
    assert code == 0 and "vocabulary: {add: 30}" in text and "keep their ids" in text


def test_nothing_proposed_or_refused(base: str, texts: str, tmp_path: Path) -> None:
    english = str(write_jsonl(tmp_path / "english.jsonl", [{"text": f"plain English, number {i}"} for i in range(40)]))
    record = look(english, "--base", base)
    assert record["recipe"] is None and record["gains"] == [] and record["scripts"] == []
    assert look(english, "--base", base, "--scripts", "latin", "--add", "5")["gains"][0]["add"] == 5
    bert = str(save_model(tmp_path / "bert", "bert"))
    record = look(texts, "--base", bert)
    assert "WordPiece" in record["obstacle"] and record["recipe"] is None
    code, text = weitiao("data", "vocab", texts, "--base", base, "--scripts", "chinese")
    assert code == 2 and "han" in text
    few = str(write_jsonl(tmp_path / "few.jsonl", [{"text": f"我们 {i}"} for i in range(5)]))
    code, text = weitiao("data", "vocab", few, "--base", base)
    assert code != 0 and "too few" in text
