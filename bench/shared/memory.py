"""Memory and age of this process, read from Linux's /proc."""

import os
import time
from pathlib import Path


def memory_mb(field: str) -> float:
    """A field of /proc/self/status in MB: VmRSS is resident now, VmHWM the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only.")


def process_age() -> float:
    """Seconds since the kernel started this process, to 0.01 s; Python's start and all imports are included."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
