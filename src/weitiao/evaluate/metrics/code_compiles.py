"""Share of answers whose Python parses: `ast.parse` takes it, and it has a statement. Nothing is run.

The code is the answer's first fenced block, or else the whole answer, as `code_pass` reads it.
"""

import ast
import warnings
from typing import Any, ClassVar

from weitiao.core.metric import Reads, RowMetric
from weitiao.evaluate.sandbox import code_of


class CodeCompiles(RowMetric):
    """Share of answers whose Python code parses."""

    reads: ClassVar[Reads] = "answers"

    def row_values(self, pairs: list[tuple[Any, Any]]) -> list[float]:
        """(generated, reference) of each row; references are not read."""
        return [float(_parses(code_of(str(text)))) for text, _ in pairs]


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SyntaxWarning: an invalid escape
            return bool(ast.parse(code).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # no Python, a NUL or a surrogate, nested too deeply
        return False
