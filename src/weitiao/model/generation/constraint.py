"""A constraint on an answer's tokens, such as a grammar compiled for a tokenizer."""

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from weitiao.core.engine import Grammar


class TokenConstraint(Protocol):
    """Which tokens an answer may go on with."""

    def allowed(self) -> Tensor:
        """[V] bool: the tokens that may come next; a stop token where the answer may end."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...

    @property
    def error(self) -> str:
        """Why it cannot be followed any longer, or ""."""
        ...

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""
        ...


GrammarCompiler = Callable[[Grammar, Any], TokenConstraint]
"""(grammar, tokenizer) -> the constraint of one answer."""
