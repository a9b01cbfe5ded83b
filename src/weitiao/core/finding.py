"""Finding and Decision: what the preflight check saw, and what was chosen for the user.

Both carry a Message, so records hold a template and numbers, and the sentence is made when it is shown.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from weitiao.core.errors import CheckError
from weitiao.core.messages import Message, joined

Level = Literal["error", "warning", "fine"]
IN_RECIPE = Message("set in the recipe")


@dataclass(frozen=True)
class Finding:
    """One check's result. An error refuses the run, a warning goes into the report."""

    name: str
    """A code: what `--allow` takes."""
    level: Level
    message: Message | str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", Message(self.message))

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "level": self.level, "message": Message(self.message).as_json()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Finding":
        return cls(record["name"], record["level"], Message.from_json(record["message"]))


@dataclass(frozen=True)
class Decision:
    """A value that was chosen for the user, and why. Printed with `-v`, and recorded in the Run."""

    key: str
    """A recipe key (train.learning_rate), or a code of its own (model.block)."""
    value: Any
    """A number, a code or a name; never a sentence."""
    reason: Message | str
    requested: bool = False
    """The recipe itself says so: there was nothing to choose."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", Message(self.reason))

    @classmethod
    def from_recipe(cls, key: str, value: Any) -> "Decision":
        """The value that the recipe gives."""
        return cls(key, value, IN_RECIPE, requested=True)

    @property
    def shown_value(self) -> str:
        """The value as people read it: 1,234,567 and 0.0002."""
        value = self.value
        if isinstance(value, dict):
            return ", ".join(f"{key}: {x}" for key, x in value.items())
        if isinstance(value, float):
            return f"{value:g}"
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value >= 100_000 else str(value)

    def as_json(self) -> dict[str, Any]:
        """What resolved.json holds under the key."""
        return {"value": self.value, "reason": Message(self.reason).as_json(), "requested": self.requested}

    @classmethod
    def from_json(cls, key: str, record: dict[str, Any]) -> "Decision":
        return cls(key, record["value"], Message.from_json(record["reason"]), record.get("requested", False))


def refuse(findings: Iterable[Finding], allowed: Collection[str]) -> None:
    """Stop if there is an error that is not allowed by name.

    Raises:
        CheckError: naming every error, and the option that allows it.
    """
    findings = list(findings)
    available = sorted({x.name for x in findings})
    if unknown := sorted(set(allowed) - set(available)):
        raise CheckError("--allow {name}: there is no check of that name. There are: {known}.", name=unknown[0],
                         known=", ".join(available))  # fmt: skip
    errors = [x for x in findings if x.level == "error" and x.name not in allowed]
    if errors:
        options = " ".join(f"--allow {name}" for name in sorted({x.name for x in errors}))
        error = CheckError(
            "{errors}\nFix this; or, if you know better, go on with {options}",
            errors=joined("\n", [Message("{name}: {message}", name=x.name, message=x.message) for x in errors]),
            options=options,
        )
        error.findings = findings
        raise error
