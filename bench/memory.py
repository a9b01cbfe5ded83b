"""What this process holds, from Linux's own accounts."""

from pathlib import Path


def memory_mb(field: str) -> float:
    """A line of this process's memory accounts in MB: VmRSS is held now, VmHWM is the most ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {field}: memory is measured on Linux only.")
