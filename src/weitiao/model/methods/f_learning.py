"""F-Learning: forget what the old facts taught, then learn the new ones.

Ni et al. 2023, "Forgetting before Learning: Utilizing Parametric Arithmetic for Knowledge Updating in Large Language
Models", arXiv 2311.08011:

    theta_old = theta trained on the old facts            a finished Run: `forget_run`
    theta'    = theta - lambda * (theta_old - theta)      forgetting, when this method is attached
    theta*    = theta' trained on the new facts           learning, by `method`

    base W --(- lambda * old change)--> W'  (frozen, or the start of `full`) --- method --->  outputs

Both methods may be LoRA, full or any other that merges. The old run's result is copied into the new Run, which can be
opened after the old one is deleted. Its hash is part of the recipe, and an old run that has changed is refused. A copy of
the base weights stays in memory, to switch the method off. There is no PEFT format: an adapter alone would be applied to
the base instead of W'; `weitiao merge` writes the whole model.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

from pydantic import Field, model_validator
from transformers import PreTrainedModel

from weitiao.core.component_field import ComponentField
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.core.registry import create
from weitiao.model.adapters.task_vector import TaskVector, only_changed, read_task_vector, subtract

TASK_VECTOR = "task_vector.safetensors"


class FLearning(Method):
    """Subtract what a run on the old facts learned, then learn the new facts by another method."""

    starts_at_base: ClassVar[bool] = False

    forget_run: str
    """Folder of a finished Run that trained on the old facts: same base, and a method that merges."""
    forget_lambda: float = Field(default=0.3, gt=0)
    """Factor on what is subtracted (the paper's lambda: 0.1, 0.3, 0.7, 1.5)."""
    method: Annotated[Method, ComponentField("method", exclude="f_learning")] = Field(
        default_factory=lambda: cast(Method, create(Method, "lora"))
    )
    """The method that learns the new facts."""
    sha256: str = ""
    """Hash of the old run's result. Filled in; a recipe that states it refuses any other."""

    @model_validator(mode="before")
    @classmethod
    def _add_sha256(cls, settings: Any) -> Any:
        """Pin the old run in the recipe as early as possible, before it can change."""
        if isinstance(settings, dict) and isinstance(settings.get("forget_run"), str) and not settings.get("sha256"):
            return {**settings, "sha256": read_task_vector(Path(settings["forget_run"])).sha256}
        return settings

    @property
    def learning_rate(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.learning_rate

    @property
    def learning_rate_reason(self) -> Message:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.learning_rate_reason

    @property
    def step(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.method.step

    def fit(self, tokenize: Callable[[str], list[int]]) -> "FLearning":
        return self.model_copy(update={"method": self.method.fit(tokenize)})

    def load_options(self) -> dict[str, Any]:
        return self.method.load_options()

    def copy_sources_into(self, folder: Path) -> "FLearning":
        """Copy the old run's result into this Run's folder, once; it is read from there from then on."""
        if not (folder / TASK_VECTOR).is_file():
            self._read().save(folder / TASK_VECTOR)
        return self.model_copy(update={"forget_run": str(folder / TASK_VECTOR)})

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Subtract the task vector from the base weights, then attach the other method."""
        originals = subtract(model, self._read(), self.forget_lambda)
        attachment = self.method.attach(model)
        weights = dict(model.named_parameters())
        trained = [weights[name] for name in attachment.trainable]
        originals = only_changed(originals, trained)
        is_in_place = {id(x) for x in trained} <= {id(x) for x in originals.weights}

        def set_enabled(on: bool) -> None:
            if attachment.set_enabled is not None:
                attachment.set_enabled(on)
            originals.set_enabled(on)

        # without an off switch of its own, a method can be switched off only if it trains nothing but weights that
        # `originals` has a copy of
        can_disable = attachment.set_enabled is not None or is_in_place
        return replace(attachment, set_enabled=set_enabled if can_disable else None, as_peft=None, from_peft=None)

    def _read(self) -> TaskVector:
        task_vector = read_task_vector(Path(self.forget_run))
        if task_vector.sha256 != self.sha256:
            raise RecipeError(
                "method.forget_run: {path} is not the run this recipe was made with (sha256 {expected}, now {found}). "
                "Restore that run, or remove sha256 from the recipe to use the current one.",
                path=self.forget_run,
                expected=self.sha256[:12],
                found=task_vector.sha256[:12],
            )
        return task_vector
