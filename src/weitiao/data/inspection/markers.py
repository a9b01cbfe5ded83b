"""Texts that spell the control tokens and headings of chat templates: left from another format, or from generated text."""

import re
from collections import defaultdict
from typing import Any

from weitiao.data.inspection.occurrences import Occurrences
from weitiao.data.inspection.row_store import RowBatch
from weitiao.data.personal_data.identifier import AnyOf

TRIGGER = AnyOf(
    "<|", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<s>", "_turn>", "### ", "<think>", "</think>", "[UNUSED", "｜"
)
MARKER = re.compile(
    r"<\|[a-zA-Z_][\w-]{1,30}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|</?s>(?=\s|$|[\[<])|<(?:start|end)_of_turn>"
    r"|^### (?:Instruction|Response|Input|指令|回答|输入)\s*[:：]|</?think>",
    re.MULTILINE,
)


class Markers:
    """Rows with a marker, by marker."""

    def __init__(self) -> None:
        self._rows = Occurrences()
        self._markers: dict[str, Occurrences] = defaultdict(Occurrences)

    def add(self, batch: RowBatch) -> None:
        """Look through a batch."""
        for i, x in enumerate(batch.rows):
            text = f"{x.prompt}\n{x.answer}"
            if TRIGGER.search(text) and (names := set(MARKER.findall(text))):
                self._rows.add(batch.first + i)
                for name in names:
                    self._markers[name.strip()].add(batch.first + i)

    def result(self) -> dict[str, Any]:
        """{rows: Occurrences, markers: [[marker, rows]]}, the most frequent first."""
        markers = sorted(self._markers.items(), key=lambda x: -x[1].rows)
        return {"rows": self._rows, "markers": [[name, x.rows] for name, x in markers[:12]]}
