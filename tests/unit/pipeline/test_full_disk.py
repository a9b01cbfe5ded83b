"""A full disk: the kernel refuses to let files grow. What the user reads, and what is left."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.command import weitiao


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


def test_full_disk_while_saving_checkpoint(recipe_file: Any, tmp_path: Path) -> None:
    file = recipe_file(method=LARGE, train={"steps": 4, "save_every": 1})
    with no_file_longer_than(250_000):
        code, said = weitiao("train", file)
    assert code == 0, said
    assert "step 1 could not be saved (" in said
    assert "older checkpoints are intact and training goes on" in said
    assert [x.name for x in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000000"]  # before any moment: it fits
    assert json.loads((tmp_path / "run" / "best" / "step.json").read_text())["step"] > 0


def test_full_disk_while_writing_result(recipe_file: Any, tmp_path: Path) -> None:
    with no_file_longer_than(100_000):
        code, said = weitiao("train", recipe_file(method=LARGE))
    assert code == 1
    assert f"the result cannot be written to {tmp_path}/run/best" in said
    assert "Free some disk space and --resume." in said
    assert list((tmp_path / "run" / "best").iterdir()) == []
    code, said = weitiao("train", "--resume", tmp_path / "run")
    assert code == 0, said


def test_full_disk_from_start(recipe_file: Any, tmp_path: Path) -> None:
    file = recipe_file()
    with no_file_longer_than(100):
        code, said = weitiao("train", file)
    assert code == 1
    assert "writing to the disk failed: " in said and "Traceback" not in said


def test_full_disk_while_merging(train_tiny: Any, tmp_path: Path) -> None:
    run = train_tiny(train={"steps": 1}).folder
    with no_file_longer_than(60_000):
        code, said = weitiao("merge", run, tmp_path / "merged")
    assert code == 1 and "Free some disk space and run the command again" in said, said
    assert not (tmp_path / "merged").exists() and "Traceback" not in said
