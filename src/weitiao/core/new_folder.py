"""A result's folder while it is written: whole in the end, or known not to be.

    FOLDER/.unfinished/   from the first moment to the last: temporary files, and a lock of whoever writes

An error or Ctrl-C removes what was written. A kill cannot, so the mark stays: nothing here opens such a folder, and the
command that wrote it begins anew.
"""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import ParamSpec, TypeVar

from safetensors import SafetensorError

from weitiao.core.errors import ModelError
from weitiao.core.run_status import lock

UNFINISHED = ".unfinished"
P = ParamSpec("P")
T = TypeVar("T")
_mine: set[Path] = set()  # that this process is writing


def in_new_folder(function: Callable[P, T]) -> Callable[P, T]:
    """A function that writes a folder named by its argument `out`."""

    @wraps(function)
    def write(*args: P.args, **kwargs: P.kwargs) -> T:
        with new_folder(Path(signature(function).bind(*args, **kwargs).arguments["out"])):
            try:
                return function(*args, **kwargs)
            except SafetensorError as error:
                if "I/O error" not in str(error):
                    raise
                raise OSError(errno.ENOSPC, str(error)) from None  # as other files of a full disk

    return write


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Inside, a folder of its own is written; after an error nothing of it is left.

    Raises:
        ModelError: there is something in it already.
        RunError: another process is writing it.
    """
    mark, was_there = folder / UNFINISHED, folder.is_dir()
    if not mark.is_dir():
        refuse_nonempty(folder)
    mark.mkdir(parents=True, exist_ok=True)
    with lock(mark):
        try:
            _empty(folder)  # of a process that was killed
            _mine.add(mark.resolve())
            yield
            shutil.rmtree(mark)
        except BaseException:
            _empty(folder)
            shutil.rmtree(mark if was_there else folder, ignore_errors=True)
            raise
        finally:
            _mine.discard(mark.resolve())


def refuse_nonempty(folder: Path) -> None:
    """A result needs a folder of its own.

    Raises:
        ModelError: there is something in it.
    """
    if folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise ModelError("{folder} is not empty. Name a folder that does not exist yet.", folder=folder)


def refuse_unfinished(folder: Path) -> None:
    """A folder that is being written, or whose writing was cut off, is not opened.

    Raises:
        ModelError: it is one.
    """
    mark = folder / UNFINISHED
    if mark.is_dir() and mark.resolve() not in _mine:
        raise ModelError(
            "{folder} is not whole: it is still being written, or the command that wrote it was killed. Run that "
            "command again.",
            folder=folder,
        )


def temporary_place(folder: Path) -> Path:
    """Where temporary files of a folder that is being written lie: on its disk, and removed with it."""
    return folder / UNFINISHED if (folder / UNFINISHED).is_dir() else folder.parent


def _empty(folder: Path) -> None:
    """Remove all but the mark's lock."""
    for file in folder.iterdir():
        if file.name == UNFINISHED:
            continue
        shutil.rmtree(file, ignore_errors=True) if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    for file in (folder / UNFINISHED).iterdir():
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
