"""Errors that a user reads: one sentence that says what is wrong, what would be right, and what there is."""

GOOD, FAILED, WRONG_USE, STOPPED_BY_GUARD, REQUIREMENT_NOT_MET = 0, 1, 2, 3, 4
INTERRUPTED, TERMINATED = 130, 143


class WeitiaoError(Exception):
    """Something the user can mend. The command line prints its words, without a traceback."""

    exit_code = FAILED


class RecipeError(WeitiaoError):
    """The recipe or an override says something that cannot be."""

    exit_code = WRONG_USE


class DataError(WeitiaoError):
    """The data cannot be used as they are."""

    exit_code = WRONG_USE


class ModelError(WeitiaoError):
    """The base model is missing, broken or of an unsupported kind."""

    exit_code = WRONG_USE


class CheckError(WeitiaoError):
    """The pre-flight found something wrong."""

    exit_code = WRONG_USE


class RunError(WeitiaoError):
    """A Run folder is not what the command needs."""

    exit_code = WRONG_USE


class Interrupted(WeitiaoError):
    """Ctrl-C or SIGTERM arrived; everything is saved."""

    def __init__(self, words: str, exit_code: int) -> None:
        super().__init__(words)
        self.exit_code = exit_code
