"""Products of ever new shapes take no more memory: oneDNN and torch cache a few shapes, not 1,024."""

import subprocess
import sys

import pytest

from support.kernels import needs_kernels

MANY = """
import ctypes, torch
from weitiao.core.hardware import limit_primitive_cache

class Memory(ctypes.Structure):
    _fields_ = [(x, ctypes.c_size_t) for x in "arena ord sm hblks mapped usm fsm used free keep".split()]

def held():
    found = glibc.mallinfo2()
    return (found.used + found.mapped) / 1e6

glibc = ctypes.CDLL(None)
glibc.mallinfo2.restype = Memory
{before}
weight = torch.zeros(576, 1536, dtype=torch.bfloat16)
rows = torch.zeros(512, 576, dtype=torch.bfloat16)
for n in range(100, 200):
    rows[:n] @ weight
begin = held()
for n in range(200, 400):
    rows[:n] @ weight
print(held() - begin)
"""


def grown(before: str, **environment: str) -> float:
    """MB held more after 200 further shapes."""
    ran = [sys.executable, "-c", MANY.format(before=before)]
    return float(subprocess.run(ran, env=environment, capture_output=True, text=True, check=True).stdout)


@needs_kernels
@pytest.mark.skipif(sys.platform != "linux", reason="counts what glibc holds")
def test_new_shapes_do_not_grow_memory() -> None:
    wished = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}
    assert grown("") > 40
    assert abs(grown("limit_primitive_cache()")) < 4
    assert grown("limit_primitive_cache()", **wished) > 40
