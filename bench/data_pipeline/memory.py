"""The peak memory and the processor time of a process with all of its children, sampled."""

import threading
from contextlib import suppress

import psutil

INTERVAL = 0.25  # seconds


class PeakMemory:
    """Samples a process tree from a thread until `stop`.

    `resident` adds up what each process has in memory, so that what they share counts several times; `proportional` divides
    what is shared among them: the memory that is really taken.
    """

    def __init__(self, pid: int) -> None:
        self.root, self.resident, self.proportional, self.processes = psutil.Process(pid), 0, 0, 0
        self._seconds: dict[int, float] = {}  # by process; those of the last quarter of a second are missing
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._stopped.wait(INTERVAL):
            resident, proportional, processes = 0, 0, 0
            with suppress(psutil.Error):
                for process in (self.root, *self.root.children(recursive=True)):
                    with suppress(psutil.Error):
                        memory, times = process.memory_full_info(), process.cpu_times()
                        self._seconds[process.pid] = times.user + times.system
                        resident, proportional = resident + memory.rss, proportional + memory.pss
                        processes += 1
            self.resident, self.proportional = max(self.resident, resident), max(self.proportional, proportional)
            self.processes = max(self.processes, processes)

    def stop(self) -> dict[str, float]:
        self._stopped.set()
        self._thread.join()
        return {
            "peak_mb": round(self.proportional / 1e6),
            "peak_resident_mb": round(self.resident / 1e6),
            "processes": self.processes,
            "all_cpu_s": round(sum(self._seconds.values()), 1),
        }
