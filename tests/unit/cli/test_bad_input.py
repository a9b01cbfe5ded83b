"""Bad input through the command line: what the user reads, and the exit code."""

import json
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from support.models import save_model
from support.rows import chat_rows


@pytest.fixture
def rows_file(tmp_path: Path) -> Any:
    """rows_file(rows, encoding) -> the path of a .jsonl with these rows."""

    def make(rows: list[dict], encoding: str = "utf-8", name: str = "rows.jsonl") -> str:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name).write_bytes(text.encode(encoding))
        return str(tmp_path / name)

    return make


def chinese(count: int, tail: str = "") -> list[dict]:
    return [{"prompt": f"今天 天气 怎么样 {i}", "completion": f"你好 世界{tail}"} for i in range(count)]


# -- files ------------------------------------------------------------------------------------------------------------


def test_empty_file(recipe_file: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    code, said = weitiao("train", recipe_file(data=str(tmp_path / "empty.jsonl")))
    assert code == 2
    assert f"data: {tmp_path}/empty.jsonl is empty." in said


def test_blank_lines_only(recipe_file: Any, tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text("\n  \n\n")
    code, said = weitiao("train", recipe_file(data=str(tmp_path / "blank.jsonl")))
    assert code == 2
    assert "blank.jsonl has no usable row." in said


def test_missing_file(recipe_file: Any, tmp_path: Path) -> None:
    code, said = weitiao("train", recipe_file(data=str(tmp_path / "nowhere.jsonl")))
    assert code == 2
    assert f"data: there is no file {tmp_path}/nowhere.jsonl." in said


@pytest.mark.parametrize("tail", [pytest.param("x", id="even"), pytest.param("", id="odd")])
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16"])
def test_encoding_proven_and_told(recipe_file: Any, rows_file: Any, tail: str, encoding: str) -> None:
    code, said = weitiao("train", recipe_file(data=rows_file(chinese(20, tail), encoding)))
    assert code == 0, said
    assert f"is read as {encoding}: " in said


def test_byte_order_mark_skipped(recipe_file: Any, rows_file: Any, tmp_path: Path) -> None:
    code, said = weitiao("train", recipe_file(data=rows_file(chinese(20), "utf-8-sig")))
    assert code == 0, said
    assert not (tmp_path / "run" / "bad_rows.jsonl").exists()


# -- rows -------------------------------------------------------------------------------------------------------------


def test_one_bad_line_in_10_000(recipe_file: Any, tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"the fox {i}", "completion": "paris"}) for i in range(10_000)]
    lines[6_789] = '{"prompt": "the fox", "completion": '
    file = tmp_path / "many.jsonl"
    file.write_text("\n".join(lines) + "\n")
    code, said = weitiao("train", recipe_file(data=str(file), validation=0.001))
    assert code == 0, said
    assert f"1 bad rows set aside in {tmp_path}/run/bad_rows.jsonl" in said
    (bad,) = (json.loads(x) for x in (tmp_path / "run" / "bad_rows.jsonl").read_text().splitlines())
    assert (bad["file"], bad["line"]) == (str(file), 6_790)
    assert bad["reason"].startswith("not JSON:")
    assert file.read_bytes()[bad["offset"] :].startswith(lines[6_789].encode() + b"\n")


def test_too_many_bad_lines(recipe_file: Any, rows_file: Any, tmp_path: Path) -> None:
    file = Path(rows_file(chat_rows(40)))
    file.write_text(file.read_text() + "half a {\n")
    code, said = weitiao("train", recipe_file(data=str(file)))
    assert code == 2
    assert "1 of 41 rows cannot be used (2.4%, and max_bad_fraction is 0.01)" in said
    assert f"{file}, line 41, byte " in said and "not JSON" in said
    assert "not JSON" in (tmp_path / "run" / "bad_rows.jsonl").read_text()
    code, said = weitiao("train", recipe_file(data=str(file), max_bad_fraction=0.1), "--overwrite")
    assert code == 0, said


def test_missing_column(recipe_file: Any, rows_file: Any) -> None:
    file = rows_file([{"question": "what", "answer": "time"}] * 9)
    columns = {"prompt": "qestion", "completion": "answer"}
    code, said = weitiao("train", recipe_file(data={"path": file, "columns": columns}))
    assert code == 2
    assert "has no column 'qestion'. Did you mean 'question'? Its columns are: answer, question." in said


def test_unhelpful_columns(recipe_file: Any, rows_file: Any) -> None:
    code, said = weitiao("train", recipe_file(data=rows_file([{"left": "a", "right": "b"}] * 9)))
    assert code == 2
    assert "no columns of a prompt and its completion found; its columns are: left, right." in said
    assert "Name the columns with columns: {prompt: ..., completion: ...} or {messages: ...}." in said


def test_unknown_role(recipe_file: Any, rows_file: Any) -> None:
    rows = chat_rows(24)
    rows[3]["messages"][1]["role"] = "asistant"
    code, said = weitiao("train", recipe_file(data=rows_file(rows)))
    assert code == 2
    assert "line 4, byte " in said
    assert (
        "messages[1]: unknown role 'asistant'. Did you mean 'assistant'? Roles are: system, user, assistant, tool" in said
    )


def test_empty_answer(recipe_file: Any, rows_file: Any) -> None:
    rows = chat_rows(24)
    rows[7]["messages"][1]["content"] = " \n"
    code, said = weitiao("train", recipe_file(data=rows_file(rows)))
    assert code == 2
    assert "line 8, byte " in said and "the answer is empty" in said


# -- rows and the model -----------------------------------------------------------------------------------------------


@pytest.fixture
def long_file(rows_file: Any) -> str:
    rows = chat_rows(24)
    rows[5]["messages"][0]["content"] = "liquid boxes " * 60
    return rows_file(rows)


def test_overlong_row_refused(recipe_file: Any, long_file: str) -> None:
    code, said = weitiao("train", recipe_file(data=long_file, max_length=64, validation=0))
    assert code == 2
    assert f"{long_file}, line 6, byte " in said
    assert "tokens, but max_length is 64. Set overlong: drop_turns (it becomes several rows" in said


@pytest.mark.parametrize(("choice", "fact"), [("truncate", "truncated"), ("drop", "dropped"), ("split", "split")])
def test_overlong_row_truncated(recipe_file: Any, long_file: str, tmp_path: Path, choice: str, fact: str) -> None:
    code, said = weitiao("train", recipe_file(data=long_file, max_length=64, validation=0, overlong=choice))
    assert code == 0, said
    assert f"; 1 {fact}" in said
    data = json.loads((tmp_path / "run" / "resolved.json").read_text())["data"]
    assert [data[key] for key in ("truncated", "dropped", "split")] == [
        int(key == fact) for key in ("truncated", "dropped", "split")
    ]


def test_all_labels_masked(recipe_file: Any, tmp_path: Path) -> None:
    silent = tmp_path / "silent.jinja"
    silent.write_text("{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}")
    code, said = weitiao("train", recipe_file(chat_template=str(silent), validation=0))
    assert code == 2
    assert "no token carries loss, so there is nothing to train on. First bad row:" in said
    assert "line 1" in said


def test_model_without_chat_template(recipe_file: Any, tmp_path: Path) -> None:
    bare = save_model(tmp_path / "bare", template=None)
    code, said = weitiao("train", recipe_file(base=str(bare)))
    assert code == 2
    assert "this model has no chat template (it is a base model)" in said
    assert "chat_template: chatml" in said and "objective: causal_lm" in said
    code, said = weitiao("train", recipe_file(base=str(bare), chat_template="chatml"), "--overwrite")
    assert code == 0, said


def test_template_that_rejects_many_rows_stops_run(recipe_file: Any, rows_file: Any, tmp_path: Path) -> None:
    strict = tmp_path / "strict.jinja"
    strict.write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    rows = chat_rows(24)
    for row in rows[:12]:
        row["messages"].insert(0, {"role": "system", "content": "be kind"})
    code, said = weitiao("train", recipe_file(data=rows_file(rows), chat_template=str(strict)))
    assert code == 2
    assert "the chat template rejects this conversation: no system here" in said


# -- the recipe and the folder ----------------------------------------------------------------------------------------


def test_unknown_method(recipe_file: Any) -> None:
    code, said = weitiao("train", recipe_file(method="lorra"))
    assert code == 2
    assert "recipe.yaml, line " in said
    assert "there is no method called 'lorra'. Did you mean 'lora'? There are: " in said


def test_unknown_key(recipe_file: Any, tmp_path: Path) -> None:
    file = recipe_file(train={"learning_rat": 1e-3})
    line = next(i for i, x in enumerate(file.read_text().splitlines(), 1) if "learning_rat:" in x)
    code, said = weitiao("train", file)
    assert code == 2
    assert f"{file}, line {line}: unknown key 'train.learning_rat'. Did you mean 'learning_rate'?" in said
    assert not (tmp_path / "run").exists()


def test_unknown_method_setting(recipe_file: Any) -> None:
    code, said = weitiao("train", recipe_file(method={"name": "lora", "rnak": 3}))
    assert code == 2
    assert "unknown key 'method.rnak'. Did you mean 'rank'? Keys here are: alpha, bias, dropout" in said


def test_existing_run_folder(recipe_file: Any, tmp_path: Path) -> None:
    file, run = recipe_file(), tmp_path / "run"
    assert weitiao("train", file, "--quiet")[0] == 0
    code, said = weitiao("train", file)
    assert code == 2
    assert f"out: {run} holds a run already (finished). For a new one: another folder" in said
    code, said = weitiao("train", "--resume", run)
    assert code == 2
    assert f"{run} is finished already. See {run}/report.html" in said
    assert weitiao("train", file, "--quiet", "--overwrite")[0] == 0
    (aside,) = tmp_path.glob("run.before-*")
    assert (aside / "report.html").is_file() and (run / "report.html").is_file()


def test_folder_with_other_files(recipe_file: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    code, said = weitiao("train", recipe_file())
    assert code == 2
    assert f"out: {tmp_path}/run exists and holds other files. Name another folder with out=..." in said
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_line_separator_inside_row(recipe_file: Any, rows_file: Any) -> None:
    rows = [{"prompt": f"the\u2028fox\u0085{i}", "completion": "paris\u2029"} for i in range(20)]
    code, said = weitiao("train", recipe_file(data=rows_file(rows), evaluate={"samples": 2}))
    assert code == 0, said


@pytest.mark.parametrize(
    "wish",
    ["learning_rate=-1", "learning_rate=.nan", "learning_rate=0", "epochs=.inf", "num_threads=0", "micro_batch_tokens=0",
     "batch_tokens=-1", "evaluate_every=-3", "save_every=-3", "weight_decay=.inf"],
)  # fmt: skip
def test_impossible_numbers(recipe_file: Any, wish: str) -> None:
    code, said = weitiao("train", recipe_file(), f"train.{wish}")
    assert code == 2 and f"on the command line: train.{wish.partition('=')[0]}:" in said


def test_nothing_to_train(recipe_file: Any) -> None:
    code, said = weitiao("train", recipe_file(method={"target_modules": []}))
    assert code == 2 and "leave nothing to train" in said


def test_folder_cannot_be_created(recipe_file: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = weitiao("train", recipe_file(), f"out={tmp_path}/file/run")
    assert code == 2 and "cannot be created" in said


def test_prompt_fills_context(recipe_file: Any) -> None:
    code, said = weitiao("train", recipe_file(method="lora"), "method={name: prompt_tuning, num_virtual_tokens: 240}")
    assert code == 2 and "240" in said and "rows of up to" in said, said
    assert "exceed the 256 tokens that the model takes. At most" in said
