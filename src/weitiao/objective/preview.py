"""How rows are shown before step 1, where the target is not a token of the row."""

from collections.abc import Sequence

from weitiao.core.objective import Preview
from weitiao.core.processor import Processor


def preview_with_target(ids: Sequence[int], lost: Sequence[int], target: str, processor: Processor) -> Preview:
    """The text, what was cut off, and the target behind an arrow."""
    text = processor.decode([int(x) for x in ids], skip_special_tokens=False)
    return [("context", text), *preview_lost(lost, processor), ("target", f" → {target}")]


def preview_lost(lost: Sequence[int], processor: Processor) -> Preview:
    """What was cut off, if anything."""
    return [("lost", processor.decode(lost, skip_special_tokens=False))] if lost else []
