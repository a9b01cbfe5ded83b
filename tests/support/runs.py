"""A finished run, an interrupted run, and the comparison of two runs."""

import atexit
import contextlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from support.models import DECODERS, ENCODER_DECODERS, FAMILIES, save_model
from support.rows import chat_rows, write_jsonl
from weitiao.core.events import KINDS, Event, Step
from weitiao.core.recipe import make_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.pipeline import train as pipeline
from weitiao.pipeline.merging import merge_run
from weitiao.train.signals import Stop


@cache
def finished_run(base: Path | str = "llama") -> str:
    """The folder of a finished Run, trained on a tiny model of a family or on the model in a folder."""
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    folder = base if isinstance(base, Path) else save_model(place / base, base)
    chats, classes = chat_rows(8, answers=("the lazy dog",)), [{"text": f"fox {i}", "label": i % 2} for i in range(8)]
    reads = base in FAMILIES and base not in DECODERS
    encoder_decoder = base in ENCODER_DECODERS
    rewritten = [{"source": f"fox {i}", "target": "the lazy dog"} for i in range(8)]
    rows = write_jsonl(place / "old.jsonl", rewritten if encoder_decoder else classes if reads else chats)
    shape = {"steps": 3, "batch_size": 8, "learning_rate": 3e-2, "precision": "fp32", "evaluate_every": 0}
    plain = {"base": str(folder), "data": str(rows), "validation": 0, "method": {"name": "lora", "rank": 2}, "train": shape}
    plain["objective"] = "seq2seq" if encoder_decoder else "classification" if reads else "sft"
    recipe = make_recipe({**plain, "evaluate": {"metrics": ["loss"], "samples": 0}, "out": str(place / "run")})
    with torch.random.fork_rng():
        return str(pipeline.train(recipe, Reporter(Console(quiet=True))).folder)


def overfitted_model(folder: Path, base: Path, rows: list[dict]) -> Path:
    """The folder of a model whose every weight was trained on a few rows."""
    data = write_jsonl(folder / "rows.jsonl", rows)
    train_ = {"steps": 150, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 0, "save_every": 150}
    plain = {"base": str(base), "data": str(data), "validation": 0, "method": "full", "train": train_}
    plain |= {"evaluate": {"metrics": ["loss"], "samples": 0}, "out": str(folder / "run")}
    merge_run(str(pipeline.train(make_recipe(plain), Reporter(Console(quiet=True))).folder), str(folder / "merged"))
    return folder / "merged"


@contextlib.contextmanager
def stop_at(step: int, monkeypatch: pytest.MonkeyPatch):
    """Simulates Ctrl-C during step `step`."""
    stop = Stop()
    real = Run.log

    def log(self: Run, event: Event) -> None:
        real(self, event)
        if isinstance(event, Step) and event.step == step:
            stop.exit_code = 130

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log)
        patch.setattr(pipeline, "catch_signals", lambda: contextlib.nullcontext(stop))
        yield


def run_contents(run: Run) -> dict:
    """What must be equal: the result, the last checkpoint, every journal line except its seconds."""
    last = sorted((run.folder / "checkpoints").glob("step-*"))[-1]
    tensors = {f"{file.name}:{name}": x for file in last.glob("*.safetensors") for name, x in load_file(file).items()}
    tensors |= {f"trained:{name}": x for name, x in load_file(run.folder / "best" / "weights.safetensors").items()}
    lines = [
        {key: value for key, value in event.items() if key not in ("seconds", "time")}
        for event in run.history
        if event["event"] in ("step", "validation", "early_stop", "end")
    ]
    return {
        "tensors": tensors,
        "journal": lines,
        "scores": run.read("scores.json"),
        "samples": run.read("samples.jsonl"),
    }


def assert_same_run(a: dict, b: dict) -> None:
    assert a["journal"] == b["journal"]
    assert a["scores"] == b["scores"] and a["samples"] == b["samples"]
    assert a["tensors"].keys() == b["tensors"].keys()
    different = [name for name, x in a["tensors"].items() if not torch.equal(x, b["tensors"][name])]
    assert not different


def events(run: Run, name: str) -> list[dict]:
    assert name in KINDS, f"there is no event {name}"
    return [event for event in run.history if event["event"] == name]


def final_loss(run: Run) -> float:
    return events(run, "validation")[-1]["loss"]
