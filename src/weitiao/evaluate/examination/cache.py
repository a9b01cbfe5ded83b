"""Answers that are known already: one file a model, so that an exam that was interrupted, or repeated, runs the rest only.

An answer's key is a hash of the prompt's tokens, the options' tokens and the settings; the file's name is the model's
fingerprint. A line that was being written when the process was killed is left out when the file is read.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from weitiao.core import event_log


class ExamCache:
    """Results by key, in memory and in a file."""

    def __init__(self, file: Path | None) -> None:
        """
        Args:
            file: None: in memory alone.
        """
        self.file = file
        lines = event_log.read(file) if file is not None else ()
        self._results: dict[str, Any] = {x["key"]: x["value"] for x in lines if "value" in x}

    def get(self, key: str) -> Any:
        """A result; None: it is not known."""
        return self._results.get(key)

    def add(self, key: str, value: Any) -> None:
        """Add a result, and write it."""
        self._results[key] = value
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            event_log.append(self.file, {"key": key, "value": value})


def cache_key(*parts: Any) -> str:
    """A hash of values that JSON can write."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
