"""A result's folder is whole, or known not to be: errors, signals and kills while it is written."""

import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.command import weitiao
from weitiao.core.errors import ModelError, RunError
from weitiao.core.new_folder import UNFINISHED, new_folder, refuse_unfinished, temporary_place
from weitiao.core.run_status import read_owner


def write(folder: Path) -> None:
    (folder / "weights").write_text("some")
    (folder / "part").mkdir()
    (folder / "part" / "more").write_text("more")


def test_whole_folder_has_no_mark(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "out"
    with new_folder(folder):
        write(folder)
        (temporary_place(folder) / "recording").mkdir()
        refuse_unfinished(folder)  # whoever writes it may open it
    assert sorted(x.name for x in folder.iterdir()) == ["part", "weights"]
    with pytest.raises(ModelError, match="is not empty"), new_folder(folder):
        pass
    assert (folder / "weights").read_text() == "some"


@pytest.mark.parametrize("was_there", [False, True])
@pytest.mark.parametrize("error", [ModelError("refused"), KeyboardInterrupt()], ids=["error", "signal"])
def test_nothing_left_after_error(tmp_path: Path, was_there: bool, error: BaseException) -> None:
    folder = tmp_path / "out"
    if was_there:
        folder.mkdir()
    with pytest.raises(type(error)), new_folder(folder):
        write(folder)
        raise error
    assert folder.is_dir() == was_there and not (was_there and list(folder.iterdir()))


def _killed(folder: Path) -> None:
    with new_folder(folder):
        write(folder)
        (temporary_place(folder) / "recording").mkdir()
        signal.raise_signal(signal.SIGKILL)


def test_killed_folder_refused_and_written_again(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL and (folder / "weights").is_file()
    with pytest.raises(ModelError, match="out is not whole: .*Run that command again"):
        refuse_unfinished(folder)
    with new_folder(folder):
        assert [x.name for x in folder.iterdir()] == [UNFINISHED] and not (folder / UNFINISHED / "recording").exists()
        (folder / "weights").write_text("all")
    refuse_unfinished(folder)
    assert [x.name for x in folder.iterdir()] == ["weights"]


def test_one_writer(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with new_folder(folder):
        write(folder)
        with pytest.raises(RunError, match="being written by another process"), new_folder(folder):
            pass
        assert (folder / "weights").read_text() == "some"


def test_killed_merge_not_opened(train_tiny: Any, tmp_path: Path) -> None:
    run, out = train_tiny(train={"steps": 1}).folder, tmp_path / "merged"
    process = subprocess.Popen([sys.executable, "-m", "weitiao", "merge", run, out])
    ends = time.monotonic() + 120
    while not (out / "config.json").is_file() and time.monotonic() < ends:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert (out / UNFINISHED).is_dir() and not list(tmp_path.glob(".*"))
    for words in (["generate", out, "fox"], ["merge", out, tmp_path / "x"], ["verify", run, out]):
        code, said = weitiao(*words)
        assert code == 2 and "is not whole" in said, said
    code, said = weitiao("merge", run, out)
    assert code == 0 and not (out / UNFINISHED).exists(), said


def test_sigterm_leaves_nothing(train_tiny: Any, tmp_path: Path) -> None:
    run, out = train_tiny(train={"steps": 1}).folder, tmp_path / "merged"
    process = subprocess.Popen([sys.executable, "-m", "weitiao", "merge", run, out])
    ends = time.monotonic() + 120
    while read_owner(out / UNFINISHED) is None and time.monotonic() < ends:
        time.sleep(0.01)
    time.sleep(0.1)
    process.terminate()
    assert process.wait() == 143 and not out.exists()
