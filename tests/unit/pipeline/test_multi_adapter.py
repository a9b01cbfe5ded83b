"""Several runs on the command line: prompts that name their adapter, a chat that switches, merging."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from support.command import weitiao
from support.models import CHATML, make_tokenizer, save_model
from support.rows import chat_rows, write_jsonl
from weitiao.cli.app import app
from weitiao.core.batch import pack
from weitiao.core.errors import DataError, ModelError
from weitiao.core.example import Turn
from weitiao.core.generation import generate
from weitiao.core.reporter import Reporter
from weitiao.data.prompts import read_prompts
from weitiao.pipeline import inference as results

DESK = Reporter(Console(quiet=True))


@pytest.fixture
def pair(train_tiny: Any, tmp_path: Path) -> dict[str, Path]:
    """Two adapters trained to give different answers."""
    train = {"steps": 30, "batch_size": 8, "learning_rate": 3e-2, "evaluate_every": 30}
    made = {}
    for name, method, answer in (("fox", "lora", "the lazy dog"), ("wiz", "dora", "seven wizards")):
        rows = write_jsonl(tmp_path / f"{name}.jsonl", chat_rows(24, (answer,)))
        settings = {"name": method, "rank": 8, "alpha": 16}
        made[name] = train_tiny(train=train, method=settings, data=[{"path": str(rows)}], out=str(tmp_path / name)).folder
    return made


def adapters(pair: dict[str, Path]) -> list[str]:
    return [word for name, folder in pair.items() for word in ("--adapter", f"{name}={folder}")]


def test_each_prompt_uses_its_adapter(pair: dict, tiny_llama: Path, tmp_path: Path) -> None:
    """The command's answers are those of each run opened alone, whatever else is in the batch."""
    asks = ["what time is it", "the fox", "quietly mix liquid", "你好 世界", "what"]
    lines = [{"id": i, "prompt": ask, "adapter": name} for i, ask in enumerate(asks) for name in ("fox", "wiz")]
    lines += [{"messages": [{"role": "user", "content": "the fox"}]}, {"prompt": "the fox", "adapter": None}]
    file = write_jsonl(tmp_path / "prompts.jsonl", lines)
    code, said = weitiao("generate", tiny_llama, "--prompts", file, *adapters(pair), "--max-new-tokens", "6")
    got = [json.loads(line) for line in said.splitlines()]
    assert code == 0 and [{k: v for k, v in x.items() if k != "answer"} for x in got] == lines
    alone = {name: results.open_model(str(folder)) for name, folder in pair.items()} | {
        None: results.open_model(str(tiny_llama))
    }
    for line in got:
        opened = alone[line.get("adapter")]
        ids = opened.prompt((Turn("user", line.get("prompt", "the fox")),))
        assert line["answer"] == opened.assets.processor.decode(generate(opened.model, [ids], 6)[0]).strip()
    words = {x.get("adapter"): x["answer"] for x in got}
    assert words["fox"].startswith("the lazy") and words["wiz"].startswith("seven wiz")


@torch.no_grad()
def test_packed_rows_of_trained_runs(pair: dict, tiny_llama: Path) -> None:
    many = results.open_many(str(tiny_llama), {name: str(folder) for name, folder in pair.items()})
    rows = [{"input_ids": ids, "labels": ids} for ids in ([5, 9, 40], [7, 8, 9, 10, 11], [44, 3])]
    batch = pack(rows, range(3), ("fox", "wiz", ""))
    got = many.model.logits(batch)
    for k, name in enumerate(batch.adapters):
        alone = results.open_model(str(pair.get(name, tiny_llama)), "fp32").model
        cut = slice(batch.bounds[k], batch.bounds[k + 1])
        wanted = alone.logits(pack(rows, range(3)))[cut]
        assert float((got[cut] - wanted).abs().max() / wanted.abs().max()) <= 1e-6


def test_one_prompt_all_adapters(pair: dict, tiny_llama: Path) -> None:
    code, said = weitiao("generate", tiny_llama, "the fox", *adapters(pair), "--max-new-tokens", "6")
    assert code == 0 and all(re.search(rf"─ {name} ─", said) for name in ("base", "fox", "wiz"))
    assert "the lazy" in said and "seven wiz" in said


def test_chat_switches_adapter(pair: dict, tiny_llama: Path) -> None:
    """The first answers until another is called, and then that one."""
    command = ["chat", str(tiny_llama), *adapters(pair), "--max-new-tokens", "3"]
    told = CliRunner().invoke(app, command, input="the fox\n@wiz the fox\nthe fox\n\n", env={"COLUMNS": "300"})
    assert told.exit_code == 0, told.output
    many = results.open_many(str(tiny_llama), {name: str(folder) for name, folder in pair.items()})
    turns, wanted = (), []
    for name in ("fox", "wiz", "wiz"):
        turns += (Turn("user", "the fox"),)
        ids = generate(many.model, [many.prompt(turns, name)], 3, adapters=[name])[0]
        wanted.append(many.decode(ids))
        turns += (Turn("assistant", wanted[-1]),)
    assert [line.strip() for line in told.output.splitlines() if line.strip()] == [x for x in wanted if x]
    assert wanted[0] != wanted[1]


def test_chat_template_per_adapter(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text(CHATML.replace("<|im_start|>", "<|im_start|>the "))
    own = train_tiny(train={"steps": 1}, chat_template=str(template))
    plain = train_tiny(train={"steps": 1}, out=str(tmp_path / "plain"))
    many = results.open_many(str(tiny_llama), {"own": str(own.folder), "plain": str(plain.folder)})
    turns = (Turn("user", "hello"),)
    assert many.prompt(turns, "own") == results.open_model(str(own.folder)).prompt(turns)
    assert many.prompt(turns, "plain") == many.prompt(turns) != many.prompt(turns, "own")


def test_prompts_without_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the fox"}, {"prompt": "what"}])
    code, said = weitiao("generate", tiny_llama, "--prompts", file, "--max-new-tokens", "2", "--system", "be kind")
    opened = results.open_model(str(tiny_llama))
    ids = opened.prompt((Turn("system", "be kind"), Turn("user", "the fox")))
    wanted = opened.assets.processor.decode(generate(opened.model, [ids], 2)[0]).strip()
    assert code == 0 and json.loads(said.splitlines()[0]) == {"prompt": "the fox", "answer": wanted}


# -- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            {"prompt": "x", "adapter": "foy"},
            "line 1, byte 0: there is no adapter called 'foy'. Loaded are: fox",
        ),
        ({"ask": "x"}, "a line needs either prompt or messages; it has: ask"),
        ({"prompt": "x", "messages": []}, "a line needs either prompt or messages; it has: prompt, messages"),
        ({"prompt": 3}, "prompt is not a string"),
        ({"messages": []}, "messages must be a list of role and content, with role one of system, user, assistant, tool"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages must be a list of role and content, with role one of"),
    ],
)
def test_invalid_prompt_lines(tmp_path: Path, line: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_prompts(str(write_jsonl(tmp_path / "p.jsonl", [line])), adapters=("fox", "wiz"))


def test_not_prompt_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--prompts: there is no file"):
        read_prompts(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="bad.jsonl, line 1, byte 0: not JSON"):
        read_prompts(str(tmp_path / "bad.jsonl"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no prompt"):
        read_prompts(str(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match="there is no adapter called 'fox'; no adapter is loaded"):
        read_prompts(str(write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x", "adapter": "fox"}])))


def test_adapter_of_other_base_refused(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    one = train_tiny(train={"steps": 1})
    other = save_model(tmp_path / "other", "gpt2")
    code, said = weitiao("generate", other, "x", "--adapter", f"a={one.folder}")
    assert code == 2 and f"{one.folder} was trained on {tiny_llama}, not on {other}. Name {tiny_llama} instead." in said
    ia3 = train_tiny(train={"steps": 1}, method="ia3", out=str(tmp_path / "ia3"))
    with pytest.raises(ModelError, match="ia3 is not only a low-rank change of linear layers .lora, dora."):
        results.open_many(str(tiny_llama), {"a": str(one.folder), "b": str(ia3.folder)})
    make_tokenizer().save_pretrained(one.folder / "adapter")
    (one.folder / "adapter" / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|endoftext|>"))
    with pytest.raises(ModelError, match="ends its answers with other stop tokens than .*: load one at a time."):
        results.open_many(str(tiny_llama), {"a": str(one.folder), "b": str(one.folder / "adapter")})


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "x", "--adapter", "nameless"],
        ["generate", "x", "hi", "--adapter", "a=b", "--adapter", "a=c"],
        ["generate", "x"],
        ["generate", "x", "hi", "--prompts", "f.jsonl"],
        ["merge", "a"],
        ["merge", "a", "b", "--out", "c", "--weights", "one,two"],
    ],
)
def test_wrong_use_exits_2(words: list[str]) -> None:
    code, said = weitiao(*words)
    assert code == 2 and "Traceback" not in said


def test_merge_on_command_line(pair: dict, tiny_llama: Path, tmp_path: Path) -> None:
    """Both of the two kinds are opened, asked and merged like anything else; the decision is recorded."""
    runs = list(pair.values())
    code, said = weitiao("merge", *runs, "--method", "ties", "--weights", "1,0.5", "--out", tmp_path / "ties")
    assert code == 0 and f"ties, density 0.2: 1 x {runs[0]}, 0.5 x {runs[1]}" in said
    assert re.search(
        r"merged into .*ties, a merged model .the result of ties is not low-rank., .* in fp32.*; reloaded", said
    )
    assert weitiao("generate", tmp_path / "ties", "the fox", "--max-new-tokens", "2")[0] == 0
    code, said = weitiao("merge", runs[0], runs[0], "--out", tmp_path / "same")
    assert code == 0 and "linear: 0.5 x" in said and "a LoRA of rank 16 in PEFT's format" in said
    alone, both = (weitiao("generate", x, "the fox", "--max-new-tokens", "6")[1] for x in (runs[0], tmp_path / "same"))
    assert alone == both
    assert weitiao("merge", tmp_path / "same", tmp_path / "merged")[0] == 0
    code, said = weitiao("merge", *runs, "--method", "task_arithmetic", "--density", "0.1", "--out", tmp_path / "x")
    assert (
        code == 2
        and "density: method task_arithmetic keeps every value; density is for ties, dare_linear, dare_ties." in said
    )
    data = write_jsonl(tmp_path / "d.jsonl", chat_rows(4))
    code, said = weitiao("evaluate", tmp_path / "same", "--data", data, "--json", "--metric", "loss")
    assert code == 0 and json.loads(said)["loss"]["n"] == 4
