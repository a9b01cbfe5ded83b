"""Share of answers whose Python code passes the tests in the row's column `tests` (pass@1 of one answer each).

Chen et al. 2021, arXiv 2107.03374, sec. 2.1. The code is the answer's first fenced block, or else the whole answer; it runs
with the tests behind it, in a sandbox (evaluate/sandbox.py): its own process, without the network, with bounds on time,
memory, processes and files.
"""

from typing import ClassVar

from weitiao.core.metric import ColumnMetric, Reads
from weitiao.evaluate.sandbox import code_of, run_programs


class CodePass(ColumnMetric):
    """Share of answers whose code passes its tests."""

    reads: ClassVar[Reads] = "tests"

    def judge(self, pairs: list[tuple[str, str]]) -> list[float]:
        """(generated, tests) of each row."""
        programs = [f"{code_of(str(text))}\n\n{tests}\n" for text, tests in pairs]
        return [float(x.passed) for x in run_programs(programs)]
