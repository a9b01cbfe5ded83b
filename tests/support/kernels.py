"""Where compiled kernels must work: a test of theirs is skipped where the machine cannot, never because they do not."""

import shutil

import pytest

from weitiao.model.kernels import library

LACKS = "AVX512-BF16" if not library.instructions() else "" if shutil.which("g++") else "g++"
needs_kernels = pytest.mark.skipif(bool(LACKS), reason=f"compiled kernels: this machine has no {LACKS}")
