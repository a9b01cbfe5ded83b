"""A virtual environment for each system that weitiao is compared with, kept in .venv-peers/ beside the repository.

peer_python("trl", ["trl==1.16.0", ...])     -> the interpreter of .venv-peers/trl, made if it is not there
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def peer_python(name: str, packages: list[str], constrained: bool = True) -> Path:
    """Makes the peer's environment once: torch within our constraints, then the pinned packages.

    Args:
        constrained: False for a peer that asks for older packages than our constraints hold.
    """
    folder = ROOT / ".venv-peers" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = folder / "installed.txt"
    wanted = "\n".join(packages) + "\n"
    if finished.exists() and finished.read_text() == wanted:
        return python
    print(f"Making {folder.relative_to(ROOT)} with {', '.join(packages)} (once; minutes) ...", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    limits = ROOT / "constraints.txt"
    constraint = ["-c", str(limits)] if constrained and limits.exists() else []
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *constraint, "torch", *packages], check=True)
    finished.write_text(wanted)
    return python
