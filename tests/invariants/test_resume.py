"""A run stopped at any step and resumed equals the uninterrupted run bit-exactly: weights, moments, journal, scores."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from support.models import WORDS, save_model
from support.parts import VARIANTS, method_config
from support.processes import ForkServer
from support.rows import write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from weitiao.core.errors import Interrupted, RunError
from weitiao.core.method import Method
from weitiao.core.optimizer import Optimizer
from weitiao.core.registry import names
from weitiao.core.run import Run

STEPS = 6


@pytest.mark.parametrize("method", (*names(Method), *VARIANTS))
def test_resume_bit_exact_at_every_step(method: str, train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at each step in turn, with dropout, shuffling over epochs, uneven micro-batches, warm-up and cosine."""
    train = {
        "steps": STEPS,
        "batch_size": 8,
        "micro_batch_tokens": 70,
        "warmup_ratio": 0.3,
        "save_every": 4,
        "weight_decay": 0.01,
    }
    settings = {"lora": {"rank": 4, "dropout": 0.2}}.get(method, {})
    shape = {"method": method_config(method, **settings), "train": train}
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    assert len([x for x in whole["journal"] if x["event"] == "step"]) == STEPS
    out = str(tmp_path / "stopped")
    for step in range(1, STEPS):
        with stop_at(step, monkeypatch), pytest.raises(Interrupted) as stopped:
            train_tiny(again=step > 1, **shape, out=out)
        assert stopped.value.exit_code == 130 and f"--resume {out}" in str(stopped.value)
        torch.manual_seed(12345)  # a new process starts with other random numbers
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resume_same_mlm_masks(method: str, train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step hides words by chance; an encoder drops out, and is validated in between."""
    rows = [{"text": f"the quick brown fox {'jumps over the dog ' * (i % 3)}{i}"} for i in range(24)]
    shape = {
        "base": str(save_model(tmp_path / "bert", "bert")),
        "data": [{"path": str(write_jsonl(tmp_path / "texts.jsonl", rows))}],
        "objective": "masked_lm",
        "method": method_config(method, "bert"),
        "train": {"steps": STEPS, "batch_size": 8, "micro_batch_tokens": 70},
        "evaluate": {"metrics": ["loss", "masked_accuracy"]},
    }
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    for step in (1, 3, 4):
        out = str(tmp_path / f"stopped-{step}")
        with stop_at(step, monkeypatch), pytest.raises(Interrupted):
            train_tiny(**shape, out=out)
        torch.manual_seed(12345)
        assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


@pytest.mark.parametrize("cache", [0, 5])
def test_resume_batch_coupled_bit_exact(cache: int, train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings, with dropout, with and without gradient caching."""
    words = WORDS.split()[:12]
    rows = [{"query": f"{a} {b}", "document": f"{b} {a} {a}"} for a in words[:6] for b in words[6:]]
    shape = {
        "base": str(save_model(tmp_path / "bert", "bert")),
        "data": [{"path": str(write_jsonl(tmp_path / "pairs.jsonl", rows))}],
        "objective": {"name": "embedding", "mini_batch_size": cache},
        "method": {"name": "full"},
        "train": {"steps": STEPS, "batch_size": 8},
        "evaluate": {"metrics": ["loss", "mrr"]},
    }
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    out = str(tmp_path / "stopped")
    with stop_at(3, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, out=out)
    torch.manual_seed(12345)
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


@pytest.mark.parametrize("optimizer", names(Optimizer))
def test_resume_every_optimizer_bit_exact(
    optimizer: str, train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"method": "full", "train": {"steps": STEPS, "optimizer": optimizer, "weight_decay": 0.01}}
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    out = str(tmp_path / "stopped")
    with stop_at(3, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape, out=out)
    torch.manual_seed(12345)
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


def test_resume_with_gradient_checkpointing_changed(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It changes no bit, so a run that ran out of memory goes on with it as if it always had, or never."""
    shape, with_it = {"method": {"dropout": 0.2}}, {"train": {"gradient_checkpointing": "on"}}
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    assert_same_run(run_contents(train_tiny(**shape, **with_it, out=str(tmp_path / "always"))), whole)
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape)
    assert_same_run(run_contents(train_tiny(again=True, **shape, **with_it)), whole)


def test_resume_twice(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"method": {"dropout": 0.2}, "train": {"steps": STEPS}}
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    out = str(tmp_path / "twice")
    for step, again in ((2, False), (3, True)):
        with stop_at(step, monkeypatch), pytest.raises(Interrupted):
            train_tiny(again=again, **shape, out=out)
    assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, 137)])
def test_resume_after_real_signals(
    number: int, code: int, recipe_dict: dict, fork_server: ForkServer, tmp_path: Path
) -> None:
    """SIGTERM and Ctrl-C save and print how to resume; after SIGKILL the last checkpoint is there. All end the same."""
    plain = {**recipe_dict, "train": {**recipe_dict["train"], "steps": 60, "save_every": 5, "evaluate_every": 30}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain))

    fork_server.run("train", recipe, f"out={tmp_path / 'whole'}")
    stopped = fork_server.start("train", recipe, f"out={tmp_path / 'stopped'}")
    journal = tmp_path / "stopped" / "events.jsonl"
    deadline = time.time() + 120
    while time.time() < deadline and not (journal.exists() and '"step": 12' in journal.read_text()):
        time.sleep(0.01)
    stopped.send(number)
    assert stopped.wait() == code, stopped.output
    if number != signal.SIGKILL:
        assert "weitiao train --resume" in stopped.output
    assert fork_server.run("train", "--resume", tmp_path / "stopped")
    assert_same_run(run_contents(Run(tmp_path / "stopped")), run_contents(Run(tmp_path / "whole")))


def test_resume_changed_data_refused(train_tiny, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    rows = [json.loads(line) for line in chat_file.read_text().splitlines()]
    rows[0]["messages"][1]["content"] = "something else"
    chat_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunError, match="has changed: the rows of .*chat.jsonl, or their order.*init_from="):
        train_tiny(again=True)


def test_changed_data_refused_before_first_checkpoint(train_tiny, chat_file: Path, tmp_path: Path, monkeypatch) -> None:
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "events.jsonl").unlink()
    chat_file.write_text("".join(line + "\n" for line in chat_file.read_text().splitlines()[1:]))
    with pytest.raises(RunError, match="has changed: the rows of .*chat.jsonl, or their order.*--overwrite"):
        train_tiny(again=True)


def test_resume_with_all_checkpoints_broken_refused(train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_at(3, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    for place in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (place / "weights.safetensors").write_bytes(b"rubbish")
    for _ in range(2):
        with pytest.raises(RunError, match="no undamaged checkpoint to resume from"):
            train_tiny(again=True)


@pytest.mark.parametrize(("answer", "resumes"), [("\n", True), ("n\n", False)])
def test_same_recipe_suggests_resume(
    answer: str, resumes: bool, train_tiny, recipe_dict: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real terminal; Enter is yes, and the end is the uninterrupted run's."""
    pty = pytest.importorskip("pty", reason="no terminals of this kind here")
    whole = run_contents(train_tiny(out=str(tmp_path / "whole")))
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_dict))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "weitiao", "train", str(recipe)]
    asked = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    os.write(ours, answer.encode())
    words, _ = asked.communicate()
    assert "interrupted at step 2. Resume it?" in words
    if resumes:
        assert asked.returncode == 0, words
        assert_same_run(run_contents(Run(tmp_path / "run")), whole)
    else:
        assert asked.returncode != 0 and "--overwrite" in words


@pytest.mark.parametrize(("key", "value"), [("seed", 5), ("train.learning_rate", 1e-3), ("train.max_grad_norm", None)])
def test_resume_edited_recipe_refused(
    key: str, value: object, train_tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shapes the run may not change in the middle of it; what only looks at it may."""
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    changes = {"seed": value} if key == "seed" else {"train": {key.removeprefix("train."): value}}
    with pytest.raises(RunError, match=f"has changed: {key}"):
        train_tiny(again=True, **changes)
    train_tiny(again=True, train={"keep_checkpoints": 5, "num_threads": 1})


def test_resume_other_base_refused(train_tiny, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same shape, one weight changed."""
    with stop_at(2, monkeypatch), pytest.raises(Interrupted):
        train_tiny()
    other = shutil.copytree(tiny_llama, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).view(-1)[3] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="has changed: base"):
        train_tiny(again=True, base=str(other))
