"""What to do about a loss, in one sentence drawn from the recipe: replay where there is none, then the first that applies.

no replay            a part of general rows keeps what was learnt     Ibrahim et al. 2024, arXiv 2403.08763;
                                                                      Scialom et al. 2022, arXiv 2205.12393
full fine-tuning     LoRA learns less and forgets less                Biderman et al. 2024, arXiv 2405.09673
several epochs       forgetting grows with the number of updates      Kalajdzievski 2024, arXiv 2401.05605
otherwise            a lower rate moves the weights less              Ibrahim et al. 2024
"""

from dataclasses import dataclass

from weitiao.core.messages import Message

REPLAY = 0.2


@dataclass(frozen=True)
class Training:
    """What the rules look at."""

    trains_base: bool
    """The base's own weights are trained (method: full)."""
    replay: float
    """The fraction of general tokens."""
    epochs: float
    learning_rate: float


def advise(training: Training) -> Message:
    """What to change in the recipe."""
    if not training.replay:
        text = Message("To forget less: replay: {{path: FILE, fraction: {fraction}}} with general rows; then {second}.")
        return Message(text, fraction=REPLAY, second=_second(training))
    return Message("To forget less: {second}.", second=_second(training))


def _second(training: Training) -> Message:
    if training.trains_base:
        return Message("method: lora, which changes the base less than method: full")
    if training.epochs > 1:
        return Message("fewer epochs than {epochs:g}", epochs=training.epochs)
    return Message("a lower learning rate: train.learning_rate={rate:.1e}", rate=training.learning_rate / 2)
