"""A virtual environment for each peer, kept in .venv-peers/ in the repository.

peer_python("trl", ["trl==1.16.0", ...])     -> the interpreter of .venv-peers/trl, created if it is missing
"""

import os
import subprocess
import sys
from pathlib import Path

from bench.shared.machine import ROOT


def peer_python(name: str, packages: list[str], constrained: bool = True) -> Path:
    """Creates the peer's environment once: torch within our constraints, then the pinned packages.

    Args:
        constrained: False for a peer that requires older packages than our constraints hold.
    """
    folder = ROOT / ".venv-peers" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed.txt"
    pinned = "\n".join(packages) + "\n"
    if stamp.exists() and stamp.read_text() == pinned:
        return python
    print(f"Creating {folder.relative_to(ROOT)} with {', '.join(packages)} (once; minutes) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    constraints = ROOT / "constraints.txt"
    flags = ["-c", str(constraints)] if constrained and constraints.exists() else []
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *flags, "torch", *packages], check=True)
    stamp.write_text(pinned)
    return python
