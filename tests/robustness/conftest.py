"""What proofs share: how many times, children to kill, figures to write down."""

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import chat_rows, write_jsonl
from robustness.child import Nursery
from robustness.storm import Storm

RECORD = Path(__file__).parents[2] / "docs" / "proofs.json"
PAGES = {"proofs.md": "what|asked|measured|n|on", "proofs.zh.md": "内容|要求|实测|n|机器"}
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"
Figure = Callable[[str, object, object, int], None]


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """True: as many times as the claim says; False: a few, to see that it still holds."""
    return request.config.getoption("--full")


@pytest.fixture
def figure(full: bool) -> Iterator[Figure]:
    """figure(name, asked, measured, n) writes one figure into docs/proofs.json, in the full form only."""
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


def write_pages() -> None:
    """The table of docs/proofs.json into both pages of docs, between their marks."""
    known = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {x['asked']} | {x['measured']} | {x['n']:,} | {x['cpu']}, {x['cores']} cores, {x['date']} |"
        for name, x in known.items()
    ]
    for name, head in PAGES.items():
        page = RECORD.with_name(name)
        text = page.read_text(encoding="utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        titles = f"| {' | '.join(head.split('|'))} |\n|---|---|---|---|---|\n"
        page.write_text(f"{before}{BEGIN}{titles}{chr(10).join(rows)}\n{END}{after}", encoding="utf-8")


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Nursery:
    """Children that run `weitiao`."""
    nursery = Nursery(tmp_path_factory.mktemp("children"))
    nursery.run("--version")  # now it has imported all it will fork
    return nursery


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """The same throws in every session."""
    return random.Random(request.node.name)


@pytest.fixture(scope="session")
def storm_recipe(tiny: Path, full: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with dropout that saves at every step, validates often and keeps two states."""
    data = write_jsonl(tmp_path_factory.mktemp("data") / "chat.jsonl", chat_rows(24))
    return {
        "base": str(tiny),
        "data": [{"path": str(data)}],
        "validation": 0.2,
        "method": {"name": "lora", "rank": 4, "alpha": 8, "dropout": 0.2},
        "train": {
            **{"steps": 20 if full else 9, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-2},
            **{"evaluate_every": 4, "save_every": 1, "keep": 2},
        },
        "evaluate": {"metrics": ["loss"], "samples": 1, "max_new_tokens": 4},
        "out": "named-on-the-command-line",
    }


@pytest.fixture(scope="session")
def storm(nursery: Nursery, storm_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Storm:
    """The run that all proofs hurt, and that ran through once."""
    return Storm.brew(nursery, storm_recipe, tmp_path_factory.mktemp("storm"))
