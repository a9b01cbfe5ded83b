"""Fixtures of the robustness tests: short or full form, child processes, figures for the docs."""

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.crashes import CrashTest
from support.processes import ForkServer
from support.proofs import RECORD, Figure, write_pages
from support.rows import chat_rows, write_jsonl


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """True: as many times as the claim says; False: a few, to see that it still holds."""
    return request.config.getoption("--full")


@pytest.fixture
def record_figure(full: bool) -> Iterator[Figure]:
    """record_figure(name, asked, measured, n) writes one figure into docs/proofs.json, in the full form only."""
    from weitiao.core.hardware import environment

    started = time.perf_counter()

    def write(name: str, asked: object, measured: object, n: int) -> None:
        print(f"{name}: {measured} (asked: {asked}; n = {n})")
        if not full:
            return
        known = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
        facts = {"asked": str(asked), "measured": str(measured), "n": n, "seconds": round(time.perf_counter() - started)}
        here = environment()
        machine = {"cpu": here["device"], "cores": here["cores"], "torch": here["packages"]["torch"]}
        known[name] = {**facts, **machine, "date": time.strftime("%Y-%m-%d")}
        RECORD.parent.mkdir(exist_ok=True)
        temp = RECORD.with_suffix(f".{os.getpid()}.tmp")
        temp.write_text(json.dumps(dict(sorted(known.items())), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temp.replace(RECORD)

    yield write


def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the full form, the figures stand in the pages too."""
    if session.config.getoption("--full"):
        write_pages()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The same random numbers in every session."""
    return random.Random(request.node.name)


@pytest.fixture(scope="session")
def crash_recipe(tiny_llama: Path, full: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with dropout that saves at every step, validates often and keeps two states."""
    data = write_jsonl(tmp_path_factory.mktemp("data") / "chat.jsonl", chat_rows(24))
    return {
        "base": str(tiny_llama),
        "data": [{"path": str(data)}],
        "validation": 0.2,
        "method": {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.2},
        "train": {
            **{"steps": 20 if full else 9, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-2},
            **{"evaluate_every": 4, "save_every": 1, "keep_checkpoints": 2},
        },
        "evaluate": {"metrics": ["loss"], "samples": 1, "max_new_tokens": 4},
        "out": "named-on-the-command-line",
    }


@pytest.fixture(scope="session")
def crash_test(
    fork_server: ForkServer, crash_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> CrashTest:
    """The run that the tests kill and damage, and its uninterrupted result."""
    return CrashTest.record(fork_server, crash_recipe, tmp_path_factory.mktemp("crashes"))
