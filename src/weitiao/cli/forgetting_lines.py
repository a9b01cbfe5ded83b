"""What a run forgot, as `evaluate --forgetting` prints it."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from weitiao.core.forgetting_lines import forgetting_lines

STYLES = {"worse": "red", "better": "green", "advice": "bold"}


def show_forgetting(console: Console, record: Mapping[str, Any]) -> None:
    """A line for each finding, losses first; then what to do."""
    for verdict, line in forgetting_lines(record):
        console.print(str(line), style=STYLES.get(verdict, ""), soft_wrap=True, markup=False)
