"""The pre-flight's look at the data: what it must find, and what it must not cry about."""

import re
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from support.rows import chat_rows, write_jsonl
from weitiao.core.errors import CheckError
from weitiao.core.finding import Finding, refuse
from weitiao.core.messages import Message
from weitiao.data.checks import _stop_tokens


def found(said: str, name: str) -> str:
    """The line of one finding."""
    lines = [line for line in said.splitlines() if f" {name}: " in line]
    assert len(lines) == 1, said
    return lines[0]


def test_clean_recipe_no_findings_no_files(recipe_file: Any, tmp_path: Path) -> None:
    code, said = weitiao("check", recipe_file())
    assert code == 0 and not (tmp_path / "run").exists()
    for name in ("length", "stop_token", "begin_token", "packing", "loss", "gradients", "frozen", "restored"):
        assert f"✓ {name}: " in said, f"{name} did not pass: {said}"


def test_train_validation_overlap_found(recipe_file: Any, tmp_path: Path) -> None:
    rows = chat_rows(30)
    near = [{"messages": [{**turn, "content": turn["content"] + "!"} for turn in row["messages"]]} for row in rows[20:23]]
    held = write_jsonl(tmp_path / "held.jsonl", [*rows[:4], *near])
    code, said = weitiao("check", recipe_file(validation={"path": str(held)}))
    assert code == 0
    assert found(said, "duplicates").startswith("! duplicates: 4 of 7 held-out rows are also in the training data")
    assert found(said, "near_duplicates").startswith("!")


class FewRows:
    """Encoded rows as the check reads them."""

    def __init__(self, *labels: list[int]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(self.labels[i]), "labels": self.labels[i]}

    def where(self, i: int) -> str:
        return f"row {i}"


@pytest.mark.parametrize(
    ("rows", "level", "words"),
    [
        ([[-100, 5, 2], [5, 2, -100, 6, 2]], "fine", "all 3 assistant turns"),
        ([[-100, 5, 2], [5, 2, -100, 6, 7]], "warning", "1 of 3 assistant turns do not end .* first is in row 1"),
        ([[-100, 5, 5], [5, -100, 6, 7]], "error", "3 of 3 assistant turns do not end .* first is in row 0"),
    ],
)
def test_answer_without_stop_token_found(rows: list[list[int]], level: str, words: str) -> None:
    finding = _stop_tokens(FewRows(*rows), {2})
    assert finding.level == level and re.search(words, str(finding.message))


def test_imbalanced_answers_warning(recipe_file: Any, tmp_path: Path) -> None:
    rows = chat_rows(60, answers=("paris",) * 19 + ("seven boxes",))
    file = write_jsonl(tmp_path / "lopsided.jsonl", rows)
    assert found(weitiao("check", recipe_file(data=[{"path": str(file)}]))[1], "answers").startswith("!")


def test_errors_refuse_run_unless_allowed() -> None:
    findings = [
        Finding("loss", "error", "is wrong"),
        Finding("length", "warning", "cut"),
        Finding("frozen", "error", "moved"),
    ]
    with pytest.raises(CheckError, match="loss: is wrong\nfrozen: moved\n.*--allow frozen --allow loss"):
        refuse(findings, ())
    with pytest.raises(CheckError, match="frozen: moved"):
        refuse(findings, ["loss"])
    refuse(findings, ["loss", "frozen"])
    with pytest.raises(CheckError, match="--allow los: there is no check of that name. There are: frozen, length, loss"):
        refuse(findings, ["los"])


def test_untrained_token_rows_named(train_tiny: Any, tmp_path: Path) -> None:
    """The tiny Llama's embedding is untied: with method full, most of its rows get no gradient."""
    checked = train_tiny(method="full", train={"steps": 1}).read("preflight.json")
    (words,) = [str(Message.from_json(x["message"])) for x in checked if x["name"] == "token_rows"]
    assert (
        words.startswith("2") and "of 320 rows of the token embedding do not occur in the data and get no gradient" in words
    )
    assert "gradient: <|endoftext|>, " in words
    lora = train_tiny(train={"steps": 1}, out=str(tmp_path / "lora")).read("preflight.json")
    assert not [x for x in lora if x["name"] == "token_rows"]
