"""What every way of taking a step gives back."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Taken:
    """A window's loss and counts, over all machines; its gradients lie in the parameters."""

    loss: float
    tokens: int
    supervised: int
    notes: dict[str, float] = field(default_factory=dict)
