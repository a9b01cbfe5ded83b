"""What to do about what was found, the most valuable first: each with its rows, and the command or recipe key that helps.

The order: what spoils a measurement or tells secrets, and what training would refuse (must); what costs quality (should);
what may be meant so (look). Within each, by the share of the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from weitiao.core.finding import Finding
from weitiao.core.messages import Message

Level = Literal["must", "should", "look"]
Excerpt = Literal["row", "answer", "end", "label"]
LEVELS: dict[Level, Message] = {
    "must": Message("before training"),
    "should": Message("costs quality"),
    "look": Message("to look at"),
}
BY_HAND = Message("take these rows out or mend them: --json lists their lines")


@dataclass(frozen=True)
class Advice:
    """One thing to do."""

    code: str
    level: Level
    what: Message
    """What was found, and why it matters."""
    rows: int
    total: int
    """Rows that were looked at."""
    remedy: Message | str = BY_HAND
    """A command, a recipe key, or what to do by hand."""
    listed: Sequence[int] = ()
    """Indices of rows, as examples and for lists."""
    groups: Sequence[Sequence[int]] = ()
    """Rows that belong together, as examples."""
    excerpt: Excerpt = "row"
    """What of a row is the example."""
    texts: Sequence[tuple[int | Message, Message | str]] = ()
    """Examples that are texts already: (a row or a location, text)."""
    sampled: bool = False
    """`total` rows were drawn from all."""
    cleaner: str = ""
    """Of data/cleaners, if one helps."""
    deduplicate: str = ""

    @property
    def share(self) -> float:
        """Of the rows that were looked at."""
        return self.rows / max(self.total, 1)


@dataclass
class Findings:
    """What was found, and how commands name the files."""

    answers: Mapping[str, Any]
    total: int
    bad: int
    files: str
    """The files with their columns and encoding, as a shell reads them."""
    has_offsets: bool = False
    """Other columns count characters of the texts: no rule may change them."""
    columns: Sequence[Finding] = ()
    bad_examples: Sequence[tuple[Message, Message | str]] = ()

    def clean(self, rule: str) -> str:
        """The command that cleans the files with a rule."""
        return f"weitiao data clean {self.files} --cleaners {rule} --out cleaned"

    def deduplicate(self, kind: str) -> str:
        """The command that leaves duplicates out; where no text may change, without the rules that run by default."""
        rules = " --cleaners none" if self.has_offsets else ""
        return f"weitiao data clean {self.files}{rules} --deduplicate {kind} --out cleaned"


def combined_command(items: Sequence[Advice], facts: Findings) -> str:
    """One command for everything that `weitiao data clean` can do about it; "" if that is nothing."""
    rules = list(dict.fromkeys(x.cleaner for x in items if x.cleaner))
    order = [
        "invisible",
        "mojibake",
        "unicode",
        "html",
        "boilerplate",
        "repeated_text",
        "secrets",
        "personal_data",
        "as_an_ai",
    ]
    rules.sort(key=lambda x: order.index(x) if x in order else len(order))
    duplicates = {x.deduplicate for x in items if x.deduplicate}
    near = "near" if "near" in duplicates else "exact"
    if not rules and not duplicates:
        return ""
    if not rules:
        return facts.deduplicate(near)
    command = facts.clean(",".join(rules))
    return command.replace(" --out cleaned", f" --deduplicate {near} --out cleaned") if duplicates else command
