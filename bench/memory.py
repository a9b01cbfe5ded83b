"""What this process holds and how long it has been there, from Linux's own accounts."""

import os
import time
from pathlib import Path


def memory_mb(field: str) -> float:
    """A line of this process's memory accounts in MB: VmRSS is held now, VmHWM is the most ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only.")


def alive_seconds() -> float:
    """Since the kernel started this process, to a hundredth: Python's own start and every import are in it."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
