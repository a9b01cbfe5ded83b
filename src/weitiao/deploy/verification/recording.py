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
from weitiao.deploy.verification.fidelity import AnswerRow, LogProbs, batches


class Recording:
    """What a model predicted of the answers of rows, in temporary files of fp32 numbers."""

    def __init__(self, parent: Path) -> None:
        """Args:
        parent: a folder on a disk with room.
        """
        self.folder = Path(tempfile.mkdtemp(prefix=".weitiao-", dir=parent))
        self._widths: dict[tuple[int, ...], tuple[Path, int]] = {}

    def record(self, log_probs: LogProbs, rows: Sequence[AnswerRow], reporter: Reporter) -> None:
        """Compute and keep the log-probabilities of every answer."""
        for batch in reporter.track(batches(rows), Message("what the tuned model predicts")):
            for i, values in zip(batch, log_probs([rows[i] for i in batch]), strict=True):
                file = self.folder / f"{i}.f32"
                values.float().numpy().tofile(file)
                self._widths[_key(rows[i])] = file, values.shape[1]

    def __call__(self, rows: Sequence[AnswerRow]) -> list[Tensor]:
        """As LogProbs.

        Raises:
            ModelError: a row was not recorded.
        """
        return [self._read(row) for row in rows]

    def _read(self, row: AnswerRow) -> Tensor:
        file, width = self._widths.get(_key(row), (None, 0))
        if file is None:
            raise ModelError("the log-probabilities of this answer were not recorded.")
        return torch.from_numpy(np.fromfile(file, np.float32).reshape(-1, width))

    def close(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _key(row: AnswerRow) -> tuple[int, ...]:
    return (len(row.prompt_ids), *row.ids)
