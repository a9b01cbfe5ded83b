"""The scripts that make histories of films and questions about Ansible: small files of their formats, and the real ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import prepare_ansible
import prepare_chinese
import prepare_movies
from weitiao.core.example import content_hash

QUICKSTART = Path(__file__).parents[3] / "quickstart"
ITEMS = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
RATINGS = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"


@pytest.fixture
def movielens(tmp_path: Path) -> Path:
    """Ten people one after another, person p at times 100 p to 100 p + 7; person 0 comes back in the end."""
    films = "".join(f"{i}\tFilm {i}, The\t19{10 + i}\tDrama\n" for i in range(9)) + "9\tunknown\tunknown\tunknown\n"
    rows = [(p, i, 2 if i == 2 else 5, 100 * p + i) for p in range(10) for i in range(8)]
    rows += [(0, 8, 5, 2000), (0, 9, 5, 2001)]
    (tmp_path / "ml-100k.item").write_text(ITEMS + films)
    (tmp_path / "ml-100k.inter").write_text(RATINGS + "".join("\t".join(map(str, x)) + "\n" for x in reversed(rows)))
    return tmp_path


def test_nothing_later_is_known_in_training(movielens: Path) -> None:
    rows = prepare_movies.split(movielens)
    assert {x["group"] for x in rows["train"]} == {str(p) for p in range(7)}
    assert {x["group"] for x in rows["test"]} == {"7", "8", "9"}
    assert "The Film 8 (1918): Drama" not in {x["document"] for x in rows["train"]}, "rated after the test people came"
    assert rows["new"] == []
    assert [x["text"] for x in rows["corpus"]] == [f"The Film {i} (19{10 + i}): Drama" for i in range(9)]


def test_row_of_a_history(movielens: Path) -> None:
    """Film 2 was not liked: it is seen, and neither in a query nor a document."""
    rows = [x for x in prepare_movies.split(movielens)["test"] if x["group"] == "9"]
    assert [x["document"] for x in rows] == [f"The Film {i} (19{10 + i}): Drama" for i in (4, 5, 6, 7)]
    assert rows[-1]["query"] == "The Film 6; The Film 5; The Film 4; The Film 3; The Film 1"
    assert rows[-1]["seen"] == [f"The Film {i} (19{10 + i}): Drama" for i in range(7)]


MODULE = '''
"""A module."""
import does_not_exist
DOCUMENTATION = r"""
module: fetch_it
short_description: Fetches O(src)
description: [Copies a file from M(ansible.builtin.file)., Second.]
options:
  src: {description: [The "file" to fetch. See O(dest#other)., More.], required: true}
  dest: {description: Where it goes., default: /tmp}
  mode: {description: [Where it  goes.], choices: [a, b]}
  owner: {description: Who has it.}
  quiet: {type: bool}
  group: {description: [Its group.]}
notes: [Slow.]
"""
'''


def test_documents_and_questions_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "fetch_it.py").write_text(MODULE)
    (tmp_path / "empty.py").write_text("x = 1\n")
    assert prepare_ansible.documentation(tmp_path / "empty.py") is None
    module = prepare_ansible.documentation(tmp_path / "fetch_it.py")
    assert module is not None
    text = prepare_ansible.text_of(module)
    assert text.startswith("Ansible module fetch_it: Fetches src\n\nCopies a file from file.\nSecond.\n\nOption src of")
    assert "Where it goes.\nDefault: /tmp." in text and "Choices: a, b." in text and text.endswith("Notes:\nSlow.")
    asked = prepare_ansible.questions_of(module)
    assert asked[0] == {
        "question": "In Ansible, what does the option src of the module fetch_it do?",
        "answer": 'The "file" to fetch. See other.',
        "module": "fetch_it",
    }
    different = prepare_ansible.unique(asked)
    assert [x["answer"] for x in different] == [asked[0]["answer"], "Where it goes.", "Who has it.", "Its group."]
    exam = prepare_ansible.exam_of(different)
    assert [sorted(x["options"]) for x in exam] == [sorted(x["answer"] for x in different)] * 4
    assert all(x["answer"] in x["options"] for x in exam)


def test_chinese_is_split_by_hash_without_copies(tmp_path: Path) -> None:
    texts = [f"第 {i} 家酒店的早餐还不错，房间很干净，下次还会再来住。" for i in range(600)]
    (tmp_path / "pos.txt").write_text("\n".join([*texts, texts[3], "太短"]), encoding="utf-8")
    (tmp_path / "neg.txt").write_text(f" {texts[5]}  \n", encoding="utf-8")
    train, test = prepare_chinese.texts(tmp_path)
    assert len(test) == prepare_chinese.HELD_OUT_TEXTS and not set(train) & set(test)
    assert {*train, *test} <= {*texts}
    dialogues = {"conversations": [[f"问题 {i}", f"回答 {i}", "多余"] for i in range(80)] + [["问题 3", "另一个"]]}
    (tmp_path / "ai.yml").write_text(yaml.safe_dump(dialogues, allow_unicode=True), encoding="utf-8")
    rows, held_out = prepare_chinese.dialogues(tmp_path)
    assert (len(rows), len(held_out)) == (20, prepare_chinese.HELD_OUT_DIALOGUES)
    asked = [x["messages"][0]["content"] for x in (*rows, *held_out)]
    assert len(set(asked)) == 80 and all(x["messages"][1]["content"].startswith("回答") for x in (*rows, *held_out))


@pytest.mark.full
@pytest.mark.real
def test_real_files_do_not_leak() -> None:
    for script in ("movies", "ansible"):
        subprocess.run([sys.executable, str(QUICKSTART / f"prepare_{script}.py")], check=True)

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (QUICKSTART / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()]

    train, test = rows("movies_train"), rows("movies_test")
    assert (len(train), len(test), len(rows("movies_corpus"))) == (36_123, 2660, 1662)
    assert not {x["group"] for x in train} & {x["group"] for x in test}
    assert not any(x["document"] in x["seen"] for x in (*train, *test))
    known = {film for x in train for film in (x["document"], *x["seen"])}
    assert rows("movies_new") and not any(x["document"] in known for x in rows("movies_new"))
    known, asked, texts = rows("ansible_train"), rows("ansible_test"), rows("ansible_text")
    assert (len(known), len(asked), len(texts), len(rows("ansible_exam"))) == (321, 237, 61, 223)
    assert not {content_hash(x["answer"]) for x in known} & {content_hash(x["answer"]) for x in asked}
    all_text = " ".join(" ".join(x["text"].split()) for x in texts)
    assert all(x["answer"] in all_text for x in asked), "the answers are in the text that is trained on"
    assert not any(f"module {x['group']} do" in y["question"] for x in asked for y in known)
