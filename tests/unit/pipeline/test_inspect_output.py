"""What weitiao data inspect, clean and repair write and print: no other file is lost, no terminal obeys a text."""

import json
from pathlib import Path

import pytest

from support.command import weitiao


def test_out_replaces_only_an_earlier_page(tmp_path: Path) -> None:
    file, page = tmp_path / "rows.jsonl", tmp_path / "new" / "page.html"
    file.write_text('{"prompt": "one", "completion": "two."}\n', encoding="utf-8")
    before = file.read_bytes()
    code, output = weitiao("data", "inspect", file, "--out", file)
    assert code == 2 and "overwritten" in output
    assert file.read_bytes() == before
    for _ in range(2):  # the second time it is there
        assert weitiao("data", "inspect", file, "--out", page)[0] == 0
    for place in (page.parent / "folder.html", file / "page.html"):
        if place.parent.is_dir():
            place.mkdir()
        assert weitiao("data", "inspect", file, "--out", place)[0] == 2


def test_a_terminal_obeys_no_text(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"\x1b[2J\x1b]0;title\x07 \u202ethis {i}", "label": "\x1b[2Ja" if i % 2 else "b"} for i in range(24)]
    rows += [{"text": "", "label": "a"}] * 700
    file.write_text("".join(f"{json.dumps(x)}\n" for x in rows), encoding="utf-8")
    code, output = weitiao("data", "inspect", file, "--labels", "--out", "")
    assert code == 0 and "␛[2J" in output
    assert not any(x in output for x in ("\x1b", "\x07", "\u202e"))
    assert "max_bad_fraction: 1 in" in output  # not more, which no recipe may say


def test_cleaning_speaks_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEITIAO_LANG", "zh")
    file, out = tmp_path / "rows.jsonl", tmp_path / "cleaned"
    file.write_text('{"prompt": "one", "completion": "two."}\n' * 9, encoding="utf-8")
    assert "训练" in weitiao("data", "clean", file, "--out", out, "--processes", "1")[1].splitlines()[-1]
    assert "0 行已放回" in weitiao("data", "repair", out)[1]
    assert "已完成" in weitiao("data", "clean", file, "--out", tmp_path / "shards", "--shard", "1/1")[1]


def test_remedies_and_reasons(tmp_path: Path) -> None:
    """An encoding is no matter of columns; a reason that quotes a cell tells no secret."""
    file, key = tmp_path / "rows.csv", "sk-proj-Ab3dE5gH7jK9mN1pQ3sT5vW7"
    file.write_bytes("prompt,completion\n你好吗今天,我很好谢谢你\n什么是天气,天气就是大气的状态\n".encode("gb18030"))
    output = weitiao("data", "inspect", file, "--out", "")[1]
    assert "gb18030" in output and "columns:" not in output
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": [{"role": key, "content": "x"}]}), encoding="utf-8")
    code, output = weitiao("data", "inspect", bad, "--out", "")
    assert code != 0 and "unknown role" in output and key not in output
