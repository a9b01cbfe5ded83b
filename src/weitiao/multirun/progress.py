"""How far a Run folder is, for those who train many: not begun, to be resumed, or finished."""

from pathlib import Path
from typing import Literal

from weitiao.core.run import Run


def progress_of(folder: Path) -> Literal["new", "resumable", "finished"]:
    """A Run without its report is not finished: it was killed at its very end."""
    if not (folder / "recipe.yaml").is_file():
        return "new"
    run = Run(folder)
    if run.is_finished and (folder / "report.html").exists():
        return "finished"
    return "resumable" if run.checkpoints else "new"
