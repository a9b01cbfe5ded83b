"""The machine of a benchmark: what it is, how busy other programs keep it, and the environment of measured processes."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OPENMP_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
OPENMP_CHOICES = ("weitiao", "default")
LIBGOMP_SPIN_COUNT = 300_000  # libgomp's own, where no variable is set
OPENMP_HELP = "how OpenMP threads wait, for both sides: as weitiao sets it, or libgomp's own default"


def openmp_environment(choice: str) -> dict[str, str]:
    """The variables that say how OpenMP threads wait for one another; every side of a comparison gets the same.

    Args:
        choice: "weitiao" (what `import weitiao` sets, or the user did) or "default" (libgomp's own, set explicitly,
            because weitiao sets a value only where there is none).
    """
    if choice == "default":
        return {"GOMP_SPINCOUNT": str(LIBGOMP_SPIN_COUNT)}
    import weitiao  # noqa: F401  (sets the variables)

    return {name: os.environ[name] for name in OPENMP_VARIABLES if name in os.environ}


def set_openmp(choice: str) -> None:
    """Sets them for this process; only effective before torch is imported."""
    os.environ.update(openmp_environment(choice))


def child_environment(threads: int, openmp: str = "weitiao") -> dict[str, str]:
    """Variables of a measured process: no network, no GPU, a fixed number of threads, and `bench` can be imported."""
    import_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(import_path),
        **openmp_environment(openmp),
    }


def last_line(command: list[str], variables: dict[str, str]) -> str:
    """The last line that a Python process prints, started with this interpreter."""
    environment = {**os.environ, **variables}
    done = subprocess.run([sys.executable, *command], check=True, env=environment, stdout=subprocess.PIPE, text=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


class BackgroundLoad:
    """The share of the processor that other programs used since this was made: all that was used, less our children's."""

    def __init__(self) -> None:
        self.started, self.used, self.own = time.perf_counter(), *self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        """Processor seconds used so far (by all, by our finished children)."""
        children = os.times().children_user + os.times().children_system
        if not Path("/proc/stat").exists():
            return children, children
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        idle = fields[3] + fields[4]
        return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK"), children

    def share(self, running_seconds: float = 0.0) -> float:
        """The share so far.

        Args:
            running_seconds: processor seconds of our children that are still running.
        """
        used, own = self.now()
        others = (used - self.used) - (own - self.own) - running_seconds
        return max(0.0, others) / ((time.perf_counter() - self.started) * (os.cpu_count() or 1))


def processor() -> dict:
    """What matters to the figures: processor, cores, memory, vector instructions."""
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


def has_bf16() -> bool:
    """Whether the processor has bf16 instructions; without them torch emulates bf16, slowly."""
    return bool(set(processor()["instructions"]) & {"avx512_bf16", "amx_bf16", "bf16"})


def described_machine(threads: int, openmp: str) -> dict:
    """The machine as it is recorded with the results."""
    return processor() | {"threads": threads, "openmp": openmp_environment(openmp)}


def machine_words(machine: dict) -> str:
    """The recorded machine in a sentence; older results did not record how OpenMP threads wait."""
    facts = [
        machine["processor"],
        f"{machine['cores']} cores",
        f"{machine['threads']} threads",
        f"{machine['memory_gb']} GB",
    ]
    facts.append(" ".join(machine["instructions"]) or "no relevant vector instructions")
    return ", ".join([*facts, *(f"{name}={value}" for name, value in machine.get("openmp", {}).items())])
