"""weitiao data clean, join, repair: nothing is lost, shards change nothing, recipes with the same rules read the same."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao, write_recipe
from weitiao.core.objective import Objective
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create
from weitiao.data.read import read_sources
from weitiao.pipeline import cleaning_shard
from weitiao.pipeline.cleaned_folder import read_lines

CLEANERS = "unicode,invisible,html,repeated_text,as_an_ai,length"
OUTPUTS = ("rows.jsonl", "quarantine.jsonl", "audit.jsonl", "places.npy", "counts.json", "report.html")


def chat(question: str, answer: str, **more: Any) -> bytes:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, **more}, ensure_ascii=False).encode()


@pytest.fixture
def dirty(tmp_path: Path) -> Path:
    """Rows of every fate, among blank lines, with line ends of Windows in between."""
    lines = [b"\xef\xbb\xbf" + chat("你好", "你好！", id=10**20), b"", b'{"messages": [}', b"\xff\xfe broken \xd6\xd0"]
    for i in range(60):
        lines.append(chat(f"第{i}个问题：<b>１９９８</b>年？", f"<p>答案{i}</p>\u200b"))
        lines.append(chat(f"plain {i}", f"answer {i}") + b"\r")
        lines.append(chat("Who?", f"As an AI language model, I cannot say {i}."))
        lines.append(chat("x", "<br><br>"))
    lines.append(chat("last", "no line break behind it"))
    file = tmp_path / "dirty.jsonl"
    file.write_bytes(b"\n".join(lines))
    return file


def clean(file: Path, out: Path, *more: str) -> dict[str, Any]:
    code, output = weitiao("data", "clean", file, "--out", out, "--cleaners", CLEANERS, "--json", "--processes", "1", *more)
    assert code == 0, output
    return json.loads((out / "counts.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS}


def in_shards(file: Path, out: Path, order: Sequence[int], *more: str) -> None:
    for number in order:
        shard = f"{number}/{len(order)}"
        code, output = weitiao("data", "clean", file, "--out", out, "--cleaners", CLEANERS, "--shard", shard)
        assert code == 0, output
    code, output = weitiao("data", "join", out, *more)
    assert code == 0, output


def test_rows_and_bytes_balance(dirty: Path, tmp_path: Path) -> None:
    counts = clean(dirty, tmp_path / "out")
    rows, sizes = counts["rows"], counts["bytes"]
    assert rows == {"in": 244, "accepted": 62, "repaired": 60, "quarantined": 122, "duplicate": 0}
    assert sizes["in"] == dirty.stat().st_size == sum(x for key, x in sizes.items() if key != "in")
    assert counts["rules"]["left_out"] == {"as_an_ai": 60, "html": 60}
    assert counts["rules"]["changed"] == {"unicode": 60, "invisible": 60, "html": 60}


def test_rows_stay_as_they_are_but_for_their_texts(dirty: Path, tmp_path: Path) -> None:
    clean(dirty, tmp_path / "out")
    lines = (tmp_path / "out/rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[0] == chat("你好", "你好！", id=10**20).decode()
    assert json.loads(lines[1]) == json.loads(chat("第0个问题：1998年？", "答案0"))
    audit = list(read_lines(tmp_path / "out/audit.jsonl"))
    assert audit[0]["rule"] == "unicode" and audit[0]["field"] == "messages[0].content"
    assert audit[0]["before"] == "第0个问题：<b>１９９８</b>年？" and audit[0]["after"] == "第0个问题：<b>1998</b>年？"


def test_quarantine_has_every_byte(dirty: Path, tmp_path: Path) -> None:
    clean(dirty, tmp_path / "out")
    raw, records = dirty.read_bytes(), list(read_lines(tmp_path / "out/quarantine.jsonl"))
    assert {x["code"] for x in records} == {"json", "encoding", "as_an_ai", "html"}
    for x in records:
        line = base64.b64decode(x["raw_base64"]) if "raw_base64" in x else x["raw"].encode()
        assert raw[x["offset"] : x["offset"] + x["bytes"]].rstrip(b"\r\n") == line.rstrip(b"\r\n")
        assert raw[: x["offset"]].count(b"\n") == x["line"] - 1


@pytest.mark.parametrize("order", [(1,), (2, 1), (3, 1, 2), (7, 3, 1, 2, 6, 5, 4), tuple(range(64, 0, -1))])
def test_shards_give_the_same_bytes(dirty: Path, tmp_path: Path, order: Sequence[int]) -> None:
    clean(dirty, tmp_path / "whole")
    in_shards(dirty, tmp_path / "parts", order)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_shards_of_several_files_and_processes(dirty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is no line file: it belongs to one shard as a whole."""
    table = tmp_path / "table.csv"
    table.write_text("messages_id,prompt,completion\n1,<i>q</i>,a\n2,q2,\n", encoding="utf-8")
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": f"ａ{i}"}) + "\n" for i in range(30)))
    arguments = [str(lines), str(table), "--cleaners", "unicode,html", "-q"]
    assert weitiao("data", "clean", *arguments, "--out", tmp_path / "whole", "--processes", "1")[0] == 0
    monkeypatch.setattr("weitiao.pipeline.cleaning.SHARD_BYTES", 100)
    assert weitiao("data", "clean", *arguments, "--out", tmp_path / "pool", "--processes", "2")[0] == 0
    assert contents(tmp_path / "pool") == contents(tmp_path / "whole")
    counts = json.loads((tmp_path / "pool/counts.json").read_text(encoding="utf-8"))
    assert counts["rows"] == {"in": 32, "accepted": 0, "repaired": 31, "quarantined": 1, "duplicate": 0}
    assert not (tmp_path / "pool/shards").exists()


def test_killed_shard_changes_nothing(dirty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean(dirty, tmp_path / "whole")
    out, write = tmp_path / "parts", cleaning_shard.quarantined

    def killed(*args: Any) -> Any:
        if args[0].line > 100:
            raise KeyboardInterrupt
        return write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(cleaning_shard, "quarantined", killed)
        code, _ = weitiao("data", "clean", dirty, "--out", out, "--cleaners", CLEANERS, "--shard", "2/3")
        assert code == 130
    code, output = weitiao("data", "join", out)
    assert code == 2 and "3 of 3 shards are missing: 1, 2, 3. Run them with --shard 1/3." in output
    in_shards(dirty, out, (3, 2, 1))
    in_shards(dirty, out, (2, 3, 1))  # again: finished ones are left alone
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_finished_shards(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = (json.dumps({"text": f"第{i}行 <b>好</b>" * 20}, ensure_ascii=False) + "\n" for i in range(120_000))
    file.write_text("".join(rows), encoding="utf-8")
    command = [sys.executable, "-m", "weitiao", "data", "clean", str(file), "--out", str(out), "--processes", "1",
               "--cleaners", "unicode,mojibake,repeated_text"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as child:
        until = time.monotonic() + 120
        while not list(out.glob("shards/*-of-*/counts.json")) and time.monotonic() < until:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert "finished and kept" in errors and list(out.glob("shards/*-of-*/counts.json"))
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "are there already" in result.stdout, result.stderr
    assert json.loads((out / "counts.json").read_text(encoding="utf-8"))["rows"]["in"] == 120_000


def test_recipe_reads_the_same_rows(dirty: Path, tmp_path: Path) -> None:
    """Cleaners in a recipe give the examples that the cleaned folder gives."""
    clean(dirty, tmp_path / "out")
    objective = create(Objective, "sft")
    cleaners = CLEANERS.split(",")
    direct = read_sources([Source.model_validate({"path": str(dirty), "cleaners": cleaners})], objective, 0.5)
    cleaned = read_sources([Source(path=str(tmp_path / "out"))], objective, 0.0)
    assert [x.example for x in direct.examples] == [x.example for x in cleaned.examples]
    assert len(direct.examples) == 122 and len(direct.bad) == 2
    assert "html: 60 of 242 rows changed" in "\n".join(str(x.message) for x in direct.findings())


def test_repair_puts_rows_back_in_place(dirty: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = clean(dirty, out)
    records = list(read_lines(out / "quarantine.jsonl"))
    records[0]["raw"] = chat("mended", "１ mended").decode()  # line 3: JSON
    records[1] |= {"raw": '{"still": "wrong"}'}
    records[1].pop("raw_base64")
    kept = next(x for x in records if x["code"] == "as_an_ai")
    kept["keep"] = True
    (out / "quarantine.jsonl").write_text("".join(json.dumps(x) + "\n" for x in records), encoding="utf-8")
    code, output = weitiao("data", "repair", out)
    assert code == 0 and "2 rows are back" in output and "1 still cannot be used, 119 are unchanged" in output
    rows = [json.loads(x)["messages"] for x in (out / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows[1][1]["content"] == "1 mended" and rows[0][0]["content"] == "你好"
    assert rows[4][1]["content"].startswith("As an AI language model") and len(rows) == 124
    after = json.loads((out / "counts.json").read_text(encoding="utf-8"))
    assert after["rows"] == {**before["rows"], "repaired": 62, "quarantined": 120}
    assert sum(x for key, x in after["bytes"].items() if key != "in") == after["bytes"]["in"]
    code, output = weitiao("data", "repair", out)
    assert code == 0 and "0 rows are back" in output


def test_duplicates_by_text_and_label(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [
        ("很好", "good"),
        ("很好", "good"),
        ("很好", "bad"),
        ("這個很好的東西我們都喜歡", "good"),
        ("这个很好的东西我们都喜欢", "good"),
    ]
    file.write_text("".join(json.dumps({"text": x, "label": y}) + "\n" for x, y in rows), encoding="utf-8")
    code, output = weitiao("data", "clean", file, "--out", out, "--deduplicate", "exact")
    assert code == 0 and "2 duplicates" in output
    copies = list(read_lines(out / "duplicates.jsonl"))
    assert [(x["line"], x["copy_of"]["line"]) for x in copies] == [(2, 1), (5, 4)]


@pytest.mark.parametrize(("kind", "lines"), [("exact", [1, 2, 3]), ("near", [1, 2])])
def test_a_copy_is_one_whatever_row_comes_first_in_its_cluster(tmp_path: Path, kind: str, lines: list[int]) -> None:
    """Line 2 is near to line 1 and has another label, line 3 has the same one: their copies are copies of them."""
    long = "The old mill by the river made paper and cloth for all of the town for many long years before the trains"
    rows = [{"text": f"{long} {i}.", "label": label} for i, label in ((1, "a"), (2, "b"), (3, "a"))]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows * 3), encoding="utf-8")
    code, output = weitiao("data", "clean", file, "--out", out, "--deduplicate", kind, "--processes", "1")
    assert code == 0, output
    assert list(read_lines(out / "rows.jsonl")) == [rows[line - 1] for line in lines]
    copies = {x["line"]: x["copy_of"]["line"] for x in read_lines(out / "duplicates.jsonl")}
    assert (copies[5], copies[9]) == (2, 3 if kind == "exact" else 1)


def test_dry_run_writes_nothing(dirty: Path, tmp_path: Path) -> None:
    was = sorted(tmp_path.iterdir())
    code, output = weitiao("data", "clean", dirty, "--dry-run", "--cleaners", CLEANERS)
    assert code == 0 and sorted(tmp_path.iterdir()) == was
    assert "unicode: 60 of 242 rows changed" in output and "[-１９９８-]{+1998+}" in output and "[-<U+200B>-]" in output


def test_recipe_as_argument(dirty: Path, tmp_path: Path) -> None:
    plain = {"base": "none", "objective": "sft", "out": "runs/x", "data": {"path": str(dirty), "cleaners": ["html"]}}
    code, output = weitiao("data", "clean", write_recipe(tmp_path, plain), "--dry-run")
    assert code == 0 and "html: 60 of" in output
    plain["data"] = str(dirty)
    code, output = weitiao("data", "clean", write_recipe(tmp_path, plain), "--dry-run")
    assert code == 2 and "its data name no cleaners" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cleaners", "unicod", "--dry-run"], "there is no cleaner called 'unicod'. Did you mean 'unicode'?"),
        ([], "name the folder to write with --out"),
        (["--out", "o", "--shard", "5/4"], "write number/shards, as in 3/64"),
        (["--out", "o", "--shard", "0/4"], "write number/shards, as in 3/64"),
        (["--out", "o", "--deduplicate", "fuzzy"], "exact or near"),
        (["--out", "o", "--deduplicate", "near", "--shard", "1/2"], "give it to weitiao data join"),
    ],
)
def test_wrong_use(dirty: Path, arguments: list[str], message: str) -> None:
    code, output = weitiao("data", "clean", dirty, *arguments)
    assert code == 2 and message in " ".join(output.split()), output


def test_folder_of_something_else(dirty: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    code, output = weitiao("data", "clean", dirty, "--out", tmp_path / "full")
    assert code == 2 and "is not empty" in output and (tmp_path / "full/notes.txt").read_text() == "mine"
    assert weitiao("data", "clean", dirty, "--out", tmp_path / "o", "--shard", "1/2", "--cleaners", "html")[0] == 0
    code, output = weitiao("data", "clean", dirty, "--out", tmp_path / "o", "--shard", "2/2", "--cleaners", "unicode")
    assert code == 2 and "has shards of other files, rules or settings" in output
    code, output = weitiao("data", "repair", tmp_path / "full")
    assert code == 2 and "is no folder that weitiao data clean has finished" in output


def test_offsets_refuse_changes(tmp_path: Path) -> None:
    """Entities count characters: a rule that changes texts would move them; one that leaves rows out may work."""
    file = tmp_path / "ner.jsonl"
    rows = [{"text": "张三在北京", "entities": [{"start": 0, "end": 2, "label": "nr"}]}, {"text": "я", "entities": []}]
    file.write_text("".join(json.dumps(x) + "\n" for x in rows), encoding="utf-8")
    code, output = weitiao("data", "clean", file, "--out", tmp_path / "o", "--cleaners", "unicode,length")
    assert code == 2 and "cleaners unicode change texts" in output
    code, output = weitiao("data", "clean", file, "--out", tmp_path / "o", "--cleaners", "length")
    assert code == 0 and "length: 1 of 2 rows left out" in output
