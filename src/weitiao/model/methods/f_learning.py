"""F-Learning: forget what the old facts taught, then learn the new ones.

Ni et al. 2023, "Forgetting before Learning: Utilizing Parametric Arithmetic for Knowledge Updating in Large Language
Models", arXiv 2311.08011:

    theta_old = theta tuned on the old facts            a Run of its own, finished before: `old`
    theta'    = theta - rate * (theta_old - theta)      forgetting, when this method is attached
    theta*    = theta' tuned on the new facts           learning, by `method`

    base W --(- rate * old change)--> W'  (frozen, or where `full` begins) --- method --->  answers

Either part may be LoRA, full or any method that merges. What the old run learnt is copied into the new Run, which can
be opened when the old one is gone; its hash stands in the recipe, and an old run that has changed is refused. A copy of
the base's weights is kept in memory to switch back to. There is no PEFT format: an adapter alone would be put on the
base, not on W'; `weitiao merge` writes the whole.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, model_validator
from torch import nn

from weitiao.core.errors import RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.core.recipe import ComponentField
from weitiao.core.registry import create
from weitiao.model.adapters.task_vector import TaskVector, only_changed, read_task_vector, subtract

KEPT = "old.safetensors"


class FLearning(Method):
    """Take away what a run on the old facts learnt, then learn the new facts by another method."""

    starts_at_base: ClassVar[bool] = False

    forget_run: str
    """The folder of a finished Run that learnt the old facts, from the same base, with a method that merges."""
    forget_lambda: float = Field(default=0.3, gt=0)
    """How much of it is taken away (the paper's lambda: 0.1, 0.3, 0.7, 1.5)."""
    method: Annotated[Method, ComponentField("method", but="f_learning")] = Field(
        default_factory=lambda: cast(Method, create(Method, "lora"))
    )
    """How the new facts are learnt."""
    sha256: str = ""
    """Of what the old run learnt. Filled in; a recipe that states it refuses any other."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """Say in the recipe which old run it is, before anything else can happen to it."""
        if isinstance(given, dict) and isinstance(given.get("old"), str) and not given.get("sha256"):
            return {**given, "sha256": read_task_vector(Path(given["old"])).sha256}
        return given

    @property
    def learning_rate(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.learning_rate

    @property
    def learning_rate_reason(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return f"{self.method.name}: {self.method.learning_rate_reason}"

    @property
    def step(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.step

    def fit(self, words: Any) -> "FLearning":
        return self.model_copy(update={"method": self.method.fit(words)})

    def load_options(self) -> dict[str, Any]:
        return self.method.load_options()

    def copy_sources_into(self, folder: Path) -> "FLearning":
        """What the old run learnt, copied into this Run's folder once, and read from there ever after."""
        if not (folder / KEPT).is_file():
            self._read().save(folder / KEPT)
        return self.model_copy(update={"old": str(folder / KEPT)})

    def attach(self, model: nn.Module) -> Attachment:
        """Forget, then attach the other method."""
        base = subtract(model, self._read(), self.forget_lambda)
        inner = self.method.attach(model)
        weights = dict(model.named_parameters())
        trained = [weights[name] for name in inner.trainable]
        base = only_changed(base, trained)
        in_place = {id(x) for x in trained} <= {id(x) for x in base.weights}

        def set_enabled(on: bool) -> None:
            if inner.set_enabled is not None:
                inner.set_enabled(on)
            base.set_enabled(on)

        whole = inner.set_enabled is not None or in_place
        return replace(inner, set_enabled=set_enabled if whole else None, as_peft=None, from_peft=None)

    def _read(self) -> TaskVector:
        learnt = read_task_vector(Path(self.forget_run))
        if learnt.sha256 != self.sha256:
            raise RecipeError(
                f"old: {self.forget_run} is not what this recipe was made with (sha256 {self.sha256[:12]}, "
                f"now {learnt.sha256[:12]}). Put the old run back, or leave sha256 out to take the one that is there."
            )
        return learnt
