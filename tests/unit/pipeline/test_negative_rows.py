"""Files of negatives: what is written, that objectives read it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from support.models import save_model
from support.rows import write_jsonl
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.read import read_sources
from weitiao.pipeline.negative_rows import write_out_of_scope

ANSWER = "I can only help with parcels."
THINGS = ("a red hat", "the green lamp", "my new shoes", "a wooden chair", "the old clock", "two cups", "a garden hose",
          "the tin box", "one silver ring", "a paper kite")  # fmt: skip
CITIES = ("Lima", "Oslo", "Quito", "Bern", "Riga", "Kyoto", "Dakar")


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def in_scope(tmp_path: Path) -> Path:
    turns = lambda i, x: [  # noqa: E731
        {"role": "system", "content": "You work for the post office."},
        {"role": "user", "content": f"Where is the parcel with {x}, number {i * 7919}?"},
        {"role": "assistant", "content": f"{i} {CITIES[i % 7]} {i * 104729}."},
    ]
    rows = [{"messages": turns(i, THINGS[i % 10])} for i in range(40)]
    return write_jsonl(tmp_path / "faq.jsonl", rows)


@pytest.fixture
def general(tmp_path: Path) -> Path:
    words = ("quickly", "slowly", "never", "often", "gladly", "sadly", "rarely", "always", "soon", "twice")
    verbs = ("sings", "swims", "writes poems", "counts stars", "bakes bread", "paints walls")
    rows = [{"text": f"Tell me who {w} {v}"} for w in words for v in verbs]
    rows += [{"text": "Where is the parcel with a red hat, number 0 ?"}, rows[0], {"text": "long " * 200}]
    return write_jsonl(tmp_path / "general.jsonl", rows)


def test_out_of_scope_rows(in_scope: Path, general: Path, tmp_path: Path) -> None:
    arguments = [
        "--general",
        general,
        "--answer",
        ANSWER,
        "--out",
        tmp_path / "oos",
        "--fraction",
        "0.2",
        "--held-out",
        "20",
    ]
    code, said = weitiao("data", "out-of-scope", in_scope, *arguments, "--json")
    assert code == 0, said
    counts = json.loads(said)
    training, test = lines(tmp_path / "oos" / "train.jsonl"), lines(tmp_path / "oos" / "test.jsonl")
    assert (len(training), len(test), counts["in_scope"]) == (10, 20, 40)  # 10 of 50 rows
    assert counts["near_in_scope"] == 1 and counts["too_long"] == 1 and counts["repeated"] == 0
    asked = [x["messages"][1]["content"] for x in training + test]
    assert len(set(asked)) == 30 and not any("parcel" in x or "long" in x for x in asked)
    for row in training + test:
        assert [x["role"] for x in row["messages"]] == ["system", "user", "assistant"]
        assert row["messages"][0]["content"] == "You work for the post office." and row["refusal"] == ANSWER
        assert row["messages"][2]["content"] == ANSWER
    reading = read_sources([Source(path=str(tmp_path / "oos" / "test.jsonl"))], create(Objective, "sft"), 0.0)
    assert {x.for_evaluation["refusal"] for x in reading.examples} == {ANSWER}


def test_too_few_questions(in_scope: Path, general: Path, tmp_path: Path) -> None:
    code, said = weitiao(
        "data", "out-of-scope", in_scope, "--general", general, "--answer", ANSWER, "--out", tmp_path / "x"
    )
    assert code == 2 and "103 questions out of scope are needed" in said and "60 can be used" in said
    assert not (tmp_path / "x").exists()


def test_answer_that_is_given_in_scope(in_scope: Path, general: Path, tmp_path: Path) -> None:
    arguments = ["--general", general, "--answer", "3  bern 314187.", "--out", tmp_path / "x"]
    code, said = weitiao("data", "out-of-scope", in_scope, *arguments)
    assert code == 2 and "is given to a question in scope already" in said


def test_refusals_are_measured(
    train_tiny: Any, in_scope: Path, general: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One source in scope, one out of scope: each metric counts its own rows."""
    monkeypatch.chdir(tmp_path)  # `compare` writes a page
    write_out_of_scope([Source(path=str(in_scope))], [Source(path=str(general))], ANSWER, tmp_path / "oos", 0.2, 20)
    held_out = [{"path": str(in_scope), "limit": 7}, {"path": str(tmp_path / "oos" / "test.jsonl")}]
    data = [{"path": str(in_scope)}, {"path": str(tmp_path / "oos" / "train.jsonl"), "share": 0.3}]
    metrics = ["refusal_recall", "over_refusal"]
    run = train_tiny(data=data, evaluate={"data": held_out, "metrics": metrics, "max_new_tokens": 4})
    after = run.scores["after"]
    assert (after["refusal_recall"]["n"], after["over_refusal"]["n"]) == (20, 7)
    assert after["over_refusal"]["value"] == 0 and after["over_refusal"]["higher_is_better"] is False
    code, said = weitiao("compare", run.folder, run.folder)
    assert code == 0, said


@pytest.mark.parametrize("chat", [False, True])
def test_wrong_answers(in_scope: Path, tmp_path: Path, chat: bool) -> None:
    out = tmp_path / "judged.jsonl"
    code, said = weitiao("data", "wrong-answers", in_scope, "--out", out, *(["--chat"] if chat else []))
    assert code == 0 and "80 rows of 40 questions" in said
    rows = lines(out)
    own = {x["messages"][1]["content"]: x["messages"][2]["content"] for x in lines(in_scope)}
    labels = [x["messages"][1]["content"] if chat else x["label"] for x in rows]
    texts = [x["messages"][0]["content"] if chat else x["text"] for x in rows]
    assert labels == ["right", "wrong"] * 40
    for question, right, wrong in zip(own, texts[::2], texts[1::2]):
        assert question in right and own[question] in right and question in wrong and own[question] not in wrong
    assert len({x["group"] for x in rows}) == 40
    objective = create(Objective, "sft" if chat else "classification")
    assert len(read_sources([Source(path=str(out))], objective, 0.0).examples) == 80


def test_hard_negatives_by_ngrams_and_by_a_run(train_tiny: Any, tmp_path: Path) -> None:
    rows = [
        {"query": f"who keeps {x} number {i}", "document": f"{x} is kept by man {i * 7919}"} for i, x in enumerate(THINGS)
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    out = tmp_path / "mined.jsonl"
    code, said = weitiao("data", "hard-negatives", pairs, "--out", out, "--num-negatives", "2")
    assert code == 0 and "10 rows with 20 negatives by n-grams" in said
    assert [x["query"] for x in lines(out)] == [x["query"] for x in rows]
    examples = [x.example for x in read_sources([Source(path=str(out))], create(Objective, "rerank"), 0.0).examples]
    assert all(len(x.negatives) == 2 and x.other not in x.negatives for x in examples)
    base = str(save_model(tmp_path / "bert", "bert"))
    run = train_tiny(base=base, data=[{"path": str(out)}], objective="embedding", evaluate={"metrics": ["recall_at_10"]})
    more = tmp_path / "more.jsonl"
    code, said = weitiao(
        "data", "hard-negatives", out, "--run", run.folder, "--out", more, "--relative-margin", "0", "--json"
    )
    assert code == 0, said
    assert json.loads(said)["by"] == str(run.folder)
    assert all(set(old["negatives"]) <= set(new["negatives"]) for old, new in zip(lines(out), lines(more)))


def test_what_hard_negatives_refuse(train_tiny: Any, tmp_path: Path) -> None:
    scored = write_jsonl(tmp_path / "scored.jsonl", [{"query": "a", "document": "b", "score": 0.2}] * 3)
    code, said = weitiao("data", "hard-negatives", scored, "--out", tmp_path / "x.jsonl")
    assert code == 2 and "has a score or a label" in said
    same = write_jsonl(tmp_path / "same.jsonl", [{"query": f"a{i}", "document": "b"} for i in range(3)])
    assert "all rows have the same document" in weitiao("data", "hard-negatives", same, "--out", tmp_path / "x.jsonl")[1]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"query": f"a{i}", "document": f"b{i}"} for i in range(3)])
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"c{i}"} for i in range(3)])
    for arguments in (
        (pairs, "--out", pairs),
        (tmp_path / "p*.jsonl", "--out", pairs),
        (pairs, "--corpus", corpus, "--out", corpus),
    ):
        code, said = weitiao("data", "hard-negatives", *arguments)
        assert code == 2 and "is read, and would be overwritten" in said
    assert len(lines(pairs)) == len(lines(corpus)) == 3
    run = train_tiny()
    code, said = weitiao("data", "hard-negatives", pairs, "--run", run.folder, "--out", tmp_path / "x.jsonl")
    assert code == 2 and "encode needs a model trained with objective embedding" in said


def test_a_folder_that_is_read_is_not_written(in_scope: Path, general: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    own = in_scope.rename(folder / "train.jsonl")
    before = own.read_bytes()
    for source in (own, folder, folder / "t*.jsonl"):
        code, said = weitiao("data", "out-of-scope", source, "--general", general, "--answer", ANSWER, "--out", folder)
        assert code == 2 and "would be overwritten" in said
        code, said = weitiao("data", "wrong-answers", source, "--out", own)
        assert code == 2 and "would be overwritten" in said
    assert own.read_bytes() == before


def test_rows_that_cannot_be_read_are_not_left_out_silently(tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"query": f"a{i}", "document": f"b{i}"} for i in range(300)])
    with open(pairs, "a", encoding="utf-8") as file:
        file.write('{"query": \n')
    code, said = weitiao("data", "hard-negatives", pairs, "--out", tmp_path / "x.jsonl")
    assert code == 2 and not (tmp_path / "x.jsonl").exists() and "pairs.jsonl" in said
