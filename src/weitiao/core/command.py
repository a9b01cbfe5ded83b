"""How a user calls this program, for messages that name the next command."""

import shutil
import sys
from pathlib import Path


def command() -> str:
    """`weitiao`, or the way it was called where a shell would not find that name."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("weitiao", "__main__.py"):
        return f"{Path(sys.executable).name} -m weitiao"
    return "weitiao" if called.stem != "weitiao" or shutil.which("weitiao") else str(called)
