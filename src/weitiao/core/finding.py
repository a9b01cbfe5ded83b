"""Finding: what the pre-flight saw. An error refuses the run, a warning goes into the report, fine is fine."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from weitiao.core.errors import CheckError

Level = Literal["error", "warning", "fine"]


@dataclass(frozen=True)
class Finding:
    """One check's result. `name` is what --allow takes."""

    name: str
    level: Level
    message: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def refuse(findings: Iterable[Finding], allowed: Collection[str]) -> None:
    """Stop where something is wrong that nobody has allowed by name.

    Raises:
        CheckError: naming every error, and how to lift it.
    """
    findings = list(findings)
    unknown = sorted(set(allowed) - {x.name for x in findings})
    if unknown:
        known = ", ".join(sorted({x.name for x in findings}))
        raise CheckError(f"--allow {unknown[0]}: nothing is checked under that name. There are: {known}.")
    wrong = [x for x in findings if x.level == "error" and x.name not in allowed]
    if wrong:
        said = "\n".join(f"{x.name}: {x.message}" for x in wrong)
        lift = " ".join(f"--allow {name}" for name in sorted({x.name for x in wrong}))
        raise CheckError(f"{said}\nMend it; or, if you know better, go on with {lift}")
