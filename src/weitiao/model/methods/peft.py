"""The bridge to the PEFT library: any of its methods that change layers, by the name of its config class.

    method: {name: peft, config: LoHa, settings: {r: 8, alpha: 16}}          LoHa LoKr OFT BOFT HRA FourierFT Bone ...

PEFT injects its layers into the model and this loop trains them; the laws hold as far as PEFT's layers keep them. Methods
with a file of their own in this folder are faster there. PEFT's soft prompts have one too: prompt_tuning, p_tuning_v2.
"""

import importlib
import importlib.util
from types import ModuleType
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from weitiao.core.errors import RecipeError
from weitiao.core.hardware import needs
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.core.registry import nearest
from weitiao.model.adapters.peft_format import PREFIX, load_peft_tensors, peft_task

ADAPTER = "default"
NATIVE_TYPES = ("LORA", "ADALORA", "VERA", "IA3", "LN_TUNING", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
METADATA = (
    "peft_type",
    "peft_version",
    "task_type",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "revision",
)


class Peft(Method):
    """Use a method of the PEFT library."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[Message] = Message("usual for PEFT's layers; the best rate depends on the config")

    config: str
    """PEFT's config class, with or without the suffix Config: LoHa, LoKr, OFT, HRA ..."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Arguments of that config, under PEFT's names; target_modules defaults to all-linear."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Let PEFT inject its layers.

        Raises:
            RecipeError: PEFT has no such config, or it does not accept these settings or this model's layers.
        """
        needs("peft", "peft", "method: peft")
        peft = importlib.import_module("peft")
        config = self._config(peft)
        model.requires_grad_(False)
        try:
            peft.inject_adapter_in_model(config, model, ADAPTER)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            raise RecipeError(
                "method: PEFT's {config} does not support this model: {error}",
                config=self.config,
                error=str(error).splitlines()[0],
            ) from None
        layers: dict[str, Any] = {name: x for name, x in model.named_modules() if _is_tuner_layer(peft, x)}
        weights = dict(model.named_parameters())
        trainable = {name for name, weight in weights.items() if weight.requires_grad}
        for name in trainable:
            weights[name].data = weights[name].data.float()

        def set_enabled(on: bool) -> None:
            for layer in layers.values():
                layer.enable_adapters(on)
            for name in trainable:  # PEFT freezes what it disables
                weights[name].requires_grad_(True)

        def merge() -> None:
            for name, layer in layers.items():
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            as_json = {key: sorted(x) if isinstance(x, set) else x for key, x in config.to_dict().items()}
            as_json |= {"task_type": peft_task(model), "inference_mode": True}
            return as_json, {_peft_name(name): weights[name].detach() for name in sorted(trainable)}

        def from_peft(tensors: dict[str, Tensor]) -> None:
            load_peft_tensors(model, trainable, tensors, _peft_name)

        return Attachment(trainable=trainable, set_enabled=set_enabled, merge=merge, as_peft=as_peft, from_peft=from_peft)

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "Peft | None":
        """Any adapter that no other method reads."""
        peft_type = config.get("peft_type")
        if peft_type in NATIVE_TYPES or importlib.util.find_spec("peft") is None:
            return None
        classes = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
        if peft_type not in classes:
            return None
        settings = {key: x for key, x in config.items() if key not in METADATA and x is not None}
        return cls(config=classes[peft_type].__name__, settings=settings)

    def _config(self, peft: ModuleType) -> Any:
        name = self.config.removesuffix("Config") + "Config"
        if not hasattr(peft, name):
            names = sorted(x.removesuffix("Config") for x in dir(peft) if x.endswith("Config") and x != "PeftConfig")
            raise RecipeError(
                "method.config: PEFT has no {name}.{hint} It has: {names}.",
                name=name,
                hint=nearest(self.config, names),
                names=", ".join(names),
            )
        if issubclass(getattr(peft, name), peft.PromptLearningConfig):
            raise RecipeError(
                "method.config: {config} trains prompts; use prompt_tuning, p_tuning or p_tuning_v2.", config=self.config
            )
        try:
            return getattr(peft, name)(**{"target_modules": "all-linear", **self.settings})
        except (TypeError, ValueError) as error:
            raise RecipeError("method.settings: PEFT's {name} refuses them: {error}", name=name, error=str(error)) from None


def _peft_name(name: str) -> str:
    return PREFIX + name.replace(f".{ADAPTER}", "")


def _is_tuner_layer(peft: ModuleType, module: nn.Module) -> bool:
    return isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
