"""Log-probabilities kept on disk, so that two forms of one model need not be in memory together."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.reporter import Reporter
from weitiao.deploy.verification.fidelity import AnswerRow, LogProbs


class Recording:
    """What a model predicted of the answers of rows, in a temporary file of fp32 numbers."""

    def __init__(self, parent: Path) -> None:
        """Args:
        parent: a folder on a disk with room.
        """
        self.folder = Path(tempfile.mkdtemp(prefix=".weitiao-", dir=parent))
        self._parts: dict[tuple[int, ...], dict[int, tuple[Path, tuple[int, int]]]] = {}
        self._count = 0

    def record(self, log_probs: LogProbs, rows: Sequence[AnswerRow], reporter: Reporter) -> None:
        """Compute and keep the log-probabilities of every answer."""
        for row in reporter.track(rows, Message("what the tuned model predicts")):
            ids, start = (*row.prompt_ids, *row.answer_ids), len(row.prompt_ids)
            if row.answer_ids and start not in self._parts.get(ids, {}):
                values = log_probs(ids, start).float().numpy()
                file = self.folder / f"{self._count}.f32"
                values.tofile(file)
                self._count += 1
                self._parts.setdefault(ids, {})[start] = file, (values.shape[0], values.shape[1])

    def __call__(self, ids: Sequence[int], start: int) -> Tensor:
        """As LogProbs.

        Raises:
            ModelError: these ids were not recorded.
        """
        part = self._parts.get(tuple(ids), {}).get(start)
        if part is None:
            raise ModelError("the log-probabilities of this answer were not recorded.")
        file, shape = part
        return torch.from_numpy(np.fromfile(file, np.float32).reshape(shape))

    def close(self) -> None:
        """Delete the file."""
        shutil.rmtree(self.folder, ignore_errors=True)
