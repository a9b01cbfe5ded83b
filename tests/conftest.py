"""Fixtures of all tests: no network, a cache folder of their own, tiny models, recipes and runs."""

import copy
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import weitiao  # noqa: F401  before torch: it sets how OpenMP's threads wait

# isort: split

import torch

from support.models import FAMILIES, save_model
from support.processes import ForkServer
from support.rows import chat_rows, write_jsonl

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="write the golden losses")
    parser.addoption("--full", action="store_true", help="all repetitions of the robustness tests; takes hours")


def pytest_configure(config: pytest.Config) -> None:
    """Property-based tests: 200 examples, the same every time; with --full 100,000 random ones."""
    options: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings.register_profile("usual", max_examples=200, derandomize=True, **options)
    settings.register_profile("full", max_examples=100_000, **options)
    settings.load_profile("full" if config.getoption("--full") else "usual")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `full` run with --full only. Slow ones run first, so that none keeps a last worker busy at the end."""
    full_form = config.getoption("--full")
    skipped = [] if full_form else [x for x in items if x.get_closest_marker("full")]
    if skipped:
        config.hook.pytest_deselected(items=skipped)
        items[:] = [x for x in items if not x.get_closest_marker("full")]
    items.sort(key=lambda x: x.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def closed_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection but to this machine itself fails the test."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if self.family == socket.AF_UNIX or host in ("127.0.0.1", "::1", "localhost"):
            return real(self, address)
        raise AssertionError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(autouse=True)
def num_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread for tiny models, which is fastest, also on a busy machine; `real` ones share the cores of all workers."""
    real = request.node.get_closest_marker("real") is not None
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers) if real else 1)
    if not real:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where kernels are compiled once, for all tests."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def own_home(
    request: pytest.FixtureRequest,
    kernels: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cache folder for each test; tests marked `real` use the user's, which has the bundled model."""
    if request.node.get_closest_marker("real") is None:
        home = Path(tempfile.mkdtemp(prefix="home-", dir=tmp_path_factory.getbasetemp()))  # mktemp would list all folders
        (home / "kernels").symlink_to(kernels)
        monkeypatch.setenv("WEITIAO_HOME", str(home))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama with a chat template."""
    return save_model(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder a family."""
    place = tmp_path_factory.mktemp("families")
    return {family: save_model(place / family, family) for family in FAMILIES}


@pytest.fixture(scope="session")
def fork_server(kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> ForkServer:
    """Starts child processes that run `weitiao`."""
    fork_server = ForkServer(tmp_path_factory.mktemp("children"))
    fork_server.home.mkdir()
    (fork_server.home / "kernels").symlink_to(kernels)
    fork_server.run("--version")  # its server has imported everything now
    return fork_server


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "chat.jsonl", chat_rows(24))


@pytest.fixture
def recipe_dict(tiny_llama: Path, chat_file: Path, tmp_path: Path) -> dict:
    """A recipe as plain values, quick to run."""
    return {
        "base": str(tiny_llama),
        "data": [{"path": str(chat_file)}],
        "validation": 0.2,
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "objective": "sft",
        "train": {"steps": 4, "batch_size": 4, "precision": "fp32", "learning_rate": 1e-2, "evaluate_every": 2},
        "evaluate": {"metrics": ["loss"], "samples": 1, "max_new_tokens": 4},
        "out": str(tmp_path / "run"),
    }


@pytest.fixture
def recipe_file(recipe_dict: dict, tmp_path: Path) -> Any:
    """recipe_file(**changes) -> the file of a one-step recipe; a change that is a dict is laid over the old one."""

    from support.command import write_recipe

    def make(**changes: Any) -> Path:
        plain = dict(recipe_dict, train={**recipe_dict["train"], "steps": 1})
        plain["evaluate"] = {"metrics": ["loss"], "samples": 0, "max_new_tokens": 2}
        for key, value in changes.items():
            plain[key] = {**plain[key], **value} if isinstance(plain.get(key), dict) and isinstance(value, dict) else value
        return write_recipe(tmp_path, plain)

    return make


@pytest.fixture
def train_tiny(recipe_dict: dict):
    """train_tiny(method={...}, **changes) -> the finished Run of a tiny training."""
    from rich.console import Console

    from weitiao.core.recipe import make_recipe
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline.train import train

    def run(again: bool = False, **changes: object):
        plain = copy.deepcopy(recipe_dict)
        for key, value in changes.items():
            laid_over = isinstance(value, dict) and isinstance(plain.get(key), dict)
            laid_over = laid_over and value.get("name", "lora") == "lora"
            plain[key] = {**plain[key], **value} if laid_over else value
        return train(make_recipe(plain), Reporter(Console(quiet=True)), again=again)

    return run
