"""Data given to a function of the Python API, as a source: rows in memory become a file for as long as they are needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from weitiao.core.memory_rows import as_json_lines, is_rows
from weitiao.core.recipe_sections import Source


@contextmanager
def as_source(data: Any, task: str) -> Iterator[Source | None]:
    """A source of data; rows in memory become a file that is deleted afterwards."""
    if not is_rows(data):
        source = data if isinstance(data, Source) or data is None else Source.model_validate(data)
        yield source.model_copy(update={"task": task or source.task}) if source else None
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "data.jsonl"
        file.write_text("".join(as_json_lines(data)), encoding="utf-8")
        yield Source(path=str(file), task=task)
