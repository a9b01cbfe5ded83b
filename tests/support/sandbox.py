"""Whether generated code can be run here: the kernel needs Landlock and seccomp."""

from functools import cache

import pytest

from weitiao.core.errors import RecipeError
from weitiao.evaluate.sandbox import run_program


@cache
def has_sandbox() -> bool:
    """Whether this system has what the sandbox needs."""
    try:
        return run_program("pass").passed
    except RecipeError:
        return False


def skip_without_sandbox(metric: str = "code_pass") -> None:
    """Skip a test of a metric that runs code, where it cannot."""
    if metric == "code_pass" and not has_sandbox():
        pytest.skip("this kernel has no Landlock or no seccomp")
