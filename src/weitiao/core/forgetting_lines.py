"""What a run forgot, as the terminal and the report say it."""

from collections.abc import Mapping
from typing import Any

from weitiao.core.messages import Message, joined


def forgetting_lines(record: Mapping[str, Any] | None) -> list[tuple[str, Message]]:
    """(verdict, sentence) of each finding, losses first; then the drift, what was left out and what to do.

    Args:
        record: `forgetting` of scores.json; None: it was not measured.
    """
    if record is None:
        return []
    order = ("worse", "changed", "better")
    sentences = [(x["verdict"], Message.from_json(x["sentence"])) for x in record["findings"]]
    lines = sorted(sentences, key=lambda x: order.index(x[0]) if x[0] in order else len(order))
    if (x := record.get("drift")) is not None:
        text = Message("KL from the base: {value:.3f} [{low:.3f}, {high:.3f}] nats per token of neutral text (n = {n})")
        lines.append(("", Message(text, **{key: x[key] for key in ("value", "low", "high", "n")})))
    if notes := [Message.from_json(x) for x in record.get("notes", ())]:
        lines.append(("", Message("left out to save time: {what}", what=joined("; ", notes))))
    if record.get("advice"):
        lines.append(("advice", Message.from_json(record["advice"])))
    return lines
