"""The machine that a bench runs on: what it is, who else uses it, and what every measured process is told of it."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path


def alone(threads: int) -> dict[str, str]:
    """Variables that keep a process off the network and off a GPU, on so many threads."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def last_line(command: list[str], variables: dict[str, str]) -> str:
    """The last line that a Python process of ours prints."""
    told = {**os.environ, **variables}
    done = subprocess.run([sys.executable, *command], check=True, env=told, stdout=subprocess.PIPE, text=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


class BackgroundLoad:
    """What share of the processor others took since this was made: all that was used, less what our children used."""

    def __init__(self) -> None:
        self.started, self.used, self.by_us = time.perf_counter(), *self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """Processor seconds used so far (by all, by our finished children)."""
        children = os.times().children_user + os.times().children_system
        if not Path("/proc/stat").exists():
            return children, children
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = fields[3] + fields[4]
        return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), children

    def share(self, by_running: float = 0.0) -> float:
        """Args:
        by_running: processor seconds that children of ours used who are not finished yet.
        """
        used, by_us = self.now()
        others = (used - self.used) - (by_us - self.by_us) - by_running
        return max(0.0, others) / ((time.perf_counter() - self.started) * (os.cpu_count() or 1))


def processor() -> dict:
    """The machine, in what matters to the figures."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "bf16", "i8mm"}),
        "system": platform.system(),
    }
