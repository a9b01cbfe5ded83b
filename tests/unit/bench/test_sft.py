"""The parts of the SFT suite that need no TRL: rows, template, weitiao's side, the comparison of rows, the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bench.sft.run import chat_model
from support.models import save_model
from support.rows import write_jsonl

ROOT = Path(__file__).parents[3]
PEER = {
    **{"optim": "adamw_torch_fused", "learning_rate": 1e-3, "lr_scheduler_type": "linear", "warmup_steps": 0},
    **{"weight_decay": 0.0, "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8},
}


def output(module: str, *arguments: object) -> str:
    """What a module of the suite prints."""
    command = [sys.executable, "-m", f"bench.sft.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def rows_of(kind: str, model: Path, out: Path) -> list[dict]:
    """Eight rows to train on; four more are held out."""
    output("rows", "--kind", kind, "--model", model, "--train", 8, "--validation", 4, "--out", out)
    train, eval_set = ((out / f"{name}.jsonl").read_text().splitlines() for name in ("train", "validation"))
    assert (len(train), len(eval_set)) == (8, 4) and not set(train) & set(eval_set)
    return [json.loads(line) for line in train]


def compared(model: Path, train: Path, theirs: list[dict]) -> dict:
    """The comparison of rows with TRL's encoding of them."""
    peer = write_jsonl(train.with_name("peer.jsonl"), theirs)
    return json.loads(output("same_rows", "--model", model, "--train", train, "--peer-rows", peer))


@pytest.mark.slow
def test_equal_rows_train_on_whole_row(tiny_llama: Path, tmp_path: Path) -> None:
    """256 tokens each, 255 of them supervised, in weitiao's run as in its comparison with TRL's encoding."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = [[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id] for row in rows_of("equal", tiny_llama, tmp_path)]
    assert {len(x) for x in ids} == {256}
    same = compared(tiny_llama, tmp_path / "train.jsonl", [{"input_ids": x, "labels": x} for x in ids])
    assert same["rows_with_equal_ids"] == 8 and not same["only_trl_learns"] and not same["only_weitiao_learns"]
    assert same["trl_supervised"] == same["weitiao_supervised"] == 8 * 255
    report = tmp_path / "trl.json"
    report.write_text(json.dumps({"settings": PEER}))
    paths = ("--model", tiny_llama, "--train", tmp_path / "train.jsonl", "--peer-report", report, "--out", tmp_path / "out")
    sizes = ("--steps", 2, "--batch-size", 4, "--rank", 4, "--threads", 1, "--precision", "fp32")
    run = json.loads(output("weitiao_side", *paths, *sizes).splitlines()[-1])
    assert (run["tokens"], run["supervised"]) == (same["weitiao_tokens"], same["weitiao_supervised"])
    assert 0 < run["first_step_seconds"] < run["wall_seconds"]


@pytest.mark.real
def test_messages_and_replies_appear_once(tiny_llama: Path, tmp_path: Path) -> None:
    rows = rows_of("chatterbot", tiny_llama, tmp_path)
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    assert len({row["messages"][0]["content"].lower() for row in rows}) == 8


def test_base_model_gets_chat_template(tiny_llama: Path, tmp_path: Path) -> None:
    """TRL masks the template of the prompt; weitiao finds the same answer. A chat model is unchanged."""
    assert chat_model(tiny_llama, tmp_path) == tiny_llama
    model = chat_model(save_model(tmp_path / "base", template=None), tmp_path)
    messages = [{"role": "user", "content": "what time is it"}, {"role": "assistant", "content": "seven"}]
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole, prompt = (
        tokenizer(tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=is_prompt))["input_ids"]
        for part, is_prompt in ((messages, False), (messages[:1], True))
    )
    assert whole[: len(prompt)] == prompt and whole[0] == tokenizer.bos_token_id
    theirs = {"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]}
    same = compared(model, write_jsonl(tmp_path / "rows.jsonl", [{"messages": messages}]), [theirs])
    assert same["rows_with_equal_ids"] == 1 and not same["only_weitiao_learns"]
    assert same["only_trl_learns"] == {"\n": 1}, "the line break after the end of turn"


def test_first_step_verdict(tmp_path: Path) -> None:
    """The target is half of TRL's time; results without this measurement can still be read."""
    old = ROOT / "bench" / "results" / "sft_bf16.json"
    assert "first step" not in output("report", old)
    results = json.loads(old.read_text())
    results["setup"]["rows"] = "chatterbot"
    for pair in results["speed"]["bf16"]:
        for who, seconds in (("trl", 20.0), ("trl_best", 12.0), ("weitiao", 8.0)):
            pair[who]["first_step_seconds"] = seconds
    (tmp_path / "new.json").write_text(json.dumps(results))
    text = output("report", tmp_path / "new.json")
    assert "pass: bf16 first step after 0.40x the time of TRL, its defaults (target: at most 0.5x)" in text
    assert "FAIL: bf16 first step after 0.67x the time of TRL, its fastest settings" in text
    assert "| 20.0 | 0.40x |" in text and "Rows: the English dialogues of chatterbot-corpus" in text
