"""The machines on which compiled kernels must work: a test is skipped where the machine cannot, never because they fail."""

import shutil

import pytest

from weitiao.model.kernels import library

MISSING = "AVX512-BF16" if not library.cpu_supported() else "" if shutil.which("g++") else "g++"
needs_kernels = pytest.mark.skipif(bool(MISSING), reason=f"compiled kernels: this machine has no {MISSING}")
