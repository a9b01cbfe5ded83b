"""A full disk, for real: the kernel refuses to let files grow. What the user reads, and what is left."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stations.command import weitiao, write_recipe


@pytest.fixture
def recipe(plain_recipe: dict, tmp_path: Path) -> Any:
    """recipe(**changes) -> the file of a one-step recipe; a change that is a dict is laid over the old one."""

    def make(**changes: Any) -> Path:
        plain = dict(plain_recipe, train={**plain_recipe["train"], "steps": 1})
        plain["evaluate"] = {"metrics": ["loss"], "samples": 0, "max_new_tokens": 2}
        for key, value in changes.items():
            plain[key] = {**plain[key], **value} if isinstance(plain.get(key), dict) and isinstance(value, dict) else value
        return write_recipe(tmp_path, plain)

    return make


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes: as near to a full disk as a test gets."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


LARGE = {"name": "lora", "rank": 32, "alpha": 8}  # about 180 kB of weights, twice that of optimizer state


def test_a_full_disk_while_saving_a_state(recipe: Any, tmp_path: Path) -> None:
    file = recipe(method=LARGE, train={"steps": 4, "save_every": 1})
    with no_file_longer_than(250_000):
        code, said = weitiao("train", file)
    assert code == 0, said
    assert "step 1 could not be saved (" in said
    assert "older states are intact and the run goes on" in said
    assert list((tmp_path / "run" / "states").iterdir()) == []
    assert json.loads((tmp_path / "run" / "trained" / "step.json").read_text())["step"] > 0


def test_a_full_disk_while_writing_the_result(recipe: Any, tmp_path: Path) -> None:
    with no_file_longer_than(100_000):
        code, said = weitiao("train", recipe(method=LARGE))
    assert code == 1
    assert f"the result cannot be written to {tmp_path}/run/trained" in said
    assert "Make room and --resume." in said
    assert list((tmp_path / "run" / "trained").iterdir()) == []
    code, said = weitiao("train", "--resume", tmp_path / "run")
    assert code == 0, said


def test_a_full_disk_from_the_start(recipe: Any, tmp_path: Path) -> None:
    file = recipe()
    with no_file_longer_than(100):
        code, said = weitiao("train", file)
    assert code == 1
    assert "the disk refuses: " in said and "Traceback" not in said
