"""Rows of several tasks: each is encoded by its task's own objective."""

from abc import abstractmethod
from collections.abc import Sequence

from weitiao.core.batch import AnnotatedRow, Row, task_of
from weitiao.core.example import Task
from weitiao.core.objective import Preview, RowEncoder
from weitiao.core.processor import Processor


class TaskRows(RowEncoder):
    """Passes each row on to the RowEncoder of its task, which sees it as if there were no other task."""

    @abstractmethod
    def _encoder(self, task: str) -> RowEncoder:
        """The encoder of a task."""

    def rows(self, example: Task, processor: Processor) -> list[Row]:
        encoder = self._encoder(example.task)
        return [_with_task(row, example.task) for row in encoder.rows(example.example, processor)]

    def num_positions(self, row: Row) -> int:
        return self._encoder(task_of(row)).num_positions(_without_task(row))

    def num_targets(self, row: Row) -> int:
        return self._encoder(task_of(row)).num_targets(_without_task(row))

    def overlong_of(self, row: Row) -> str:
        return self._encoder(task_of(row)).overlong_of(_without_task(row))

    def cut(self, row: Row, max_length: int) -> tuple[Row, list[int]]:
        short, lost = self._encoder(task_of(row)).cut(_without_task(row), max_length)
        return _with_task(short, task_of(row)), lost

    def windows(self, row: Row, max_length: int) -> list[Row]:
        windows = self._encoder(task_of(row)).windows(_without_task(row), max_length)
        return [_with_task(window, task_of(row)) for window in windows]

    def preview(self, row: Row, lost: Sequence[int], processor: Processor) -> Preview:
        return self._encoder(task_of(row)).preview(_without_task(row), lost, processor)


def _with_task(row: Row, task: str) -> Row:
    return AnnotatedRow(**{**row, "task": task})


def _without_task(row: Row) -> Row:
    alone = AnnotatedRow(**row)
    alone.pop("task", None)
    return alone
