"""Errors that a user reads: one sentence that says what is wrong, what would be right, and what there is.

Every error takes a template with named fields, so that it can be shown in either language (core/messages.py):

    raise DataError("{path}, line {line}: no column {name!r}", path=path, line=3, name="text")
"""

from collections.abc import Sequence
from typing import Any

from weitiao.core.messages import Message

GOOD, FAILED, WRONG_USE, STOPPED_BY_GUARD, REQUIREMENT_NOT_MET = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143
ERROR_FILE = "WEITIAO_ERROR_FILE"  # environment variable: where a command writes its error as JSON, for programs


class WeitiaoError(Exception):
    """Something the user can fix. The command line prints its message without a traceback."""

    exit_code = FAILED

    def __init__(self, template: str | Message, /, **fields: Any) -> None:
        self.message = Message(template, **fields)
        super().__init__(self.message)

    def __str__(self) -> str:
        return str(self.message)


class RecipeError(WeitiaoError):
    """The recipe or an override holds a value that is not possible."""

    exit_code = WRONG_USE


class DataError(WeitiaoError):
    """The data cannot be used as they are."""

    exit_code = WRONG_USE


class ModelError(WeitiaoError):
    """The base model is missing, damaged or of an unsupported architecture."""

    exit_code = WRONG_USE


class CheckError(WeitiaoError):
    """The preflight check found an error."""

    exit_code = WRONG_USE
    findings: Sequence[Any] = ()
    """All findings (core/finding.py), those that are fine too."""


class RunError(WeitiaoError):
    """A Run folder is not what the command needs."""

    exit_code = WRONG_USE


class Interrupted(WeitiaoError):
    """Ctrl-C or SIGTERM arrived; everything is saved."""

    def __init__(self, template: str | Message, /, exit_code: int, **fields: Any) -> None:
        super().__init__(template, **fields)
        self.exit_code = exit_code


class InvalidValue(ValueError):
    """A setting or a row that cannot be used; whoever catches it adds where it is (file, line, key)."""

    def __init__(self, template: str | Message, /, **fields: Any) -> None:
        self.message = Message(template, **fields)
        super().__init__(self.message)

    def __str__(self) -> str:
        return str(self.message)


def message_of(error: BaseException) -> Message:
    """The error's own message; of somebody else's exception, its text as it is."""
    return error.message if isinstance(error, (WeitiaoError, InvalidValue)) else Message(str(error))
