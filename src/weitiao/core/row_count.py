"""How many rows of how many, as people read it. Without numpy, so that `weitiao runs` stays quick."""

from collections.abc import Mapping
from typing import Any

from weitiao.core.messages import Message


def row_count(score: Mapping[str, Any]) -> Message:
    """'200', or '200 of 1,000' where some rows were not measured.

    Args:
        score: as scores.json has it.
    """
    n, total = score["n"], score.get("total", score["n"])
    return Message("{n:,}", n=n) if total == n else Message("{n:,} of {total:,}", n=n, total=total)
