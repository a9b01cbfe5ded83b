"""The bridge: any method of the PEFT library that changes layers, by the name of its config.

    method: {name: peft, config: LoHa, settings: {r: 8, alpha: 16}}          LoHa LoKr OFT BOFT HRA FourierFT Bone ...

PEFT puts its layers into the model and we train them; every law holds as far as PEFT's layers keep it. Methods that have a
file of their own here are faster from there. Soft prompts of PEFT are ours too: prompt_tuning, p_tuning_v2.
"""

import importlib
import importlib.util
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from weitiao.core.errors import RecipeError
from weitiao.core.hardware import needs
from weitiao.core.method import Attachment, Method
from weitiao.core.registry import nearest
from weitiao.model.adapters.module_structure import peft_task
from weitiao.model.adapters.surgery import PREFIX, set_submodule, take_peft

ADAPTER = "default"
OURS = ("LORA", "ADALORA", "VERA", "IA3", "LN_TUNING", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")
ABOUT = ("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "inference_mode", "revision")


class Peft(Method):
    """Use a method of the PEFT library."""

    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "usual for PEFT's layers; each has its own best"

    config: str
    """PEFT's config class, with or without its ending: LoHa, LoKr, OFT, HRA ..."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What that config takes, in PEFT's own words; target_modules default to all linear layers."""

    def attach(self, model: nn.Module) -> Attachment:
        """PEFT injects its layers.

        Raises:
            RecipeError: there is no such config, it does not take these settings, or not these layers.
        """
        needs("peft", "peft", "method: peft")
        peft = importlib.import_module("peft")
        config = self._config(peft)
        model.requires_grad_(False)
        try:
            peft.inject_adapter_in_model(config, model, ADAPTER)
        except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
            raise RecipeError(f"method: PEFT's {self.config} refuses this model: {str(error).splitlines()[0]}") from None
        layers = {name: module for name, module in model.named_modules() if _is_tuner_layer(peft, module)}
        weights = dict(model.named_parameters())
        trainable = {name for name, weight in weights.items() if weight.requires_grad}
        for name in trainable:
            weights[name].data = weights[name].data.float()

        def set_enabled(on: bool) -> None:
            for layer in layers.values():
                layer.enable_adapters(on)  # pyright: ignore[reportCallIssue]
            for name in trainable:  # PEFT freezes what it switches off
                weights[name].requires_grad_(True)

        def merge() -> None:
            for name, layer in layers.items():
                layer.merge()  # pyright: ignore[reportCallIssue]
                set_submodule(model, name, layer.get_base_layer())  # pyright: ignore[reportCallIssue]

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            plain = {key: sorted(x) if isinstance(x, set) else x for key, x in config.to_dict().items()}
            plain |= {"task_type": peft_task(model), "inference_mode": True}
            return plain, {_peft_name(name): weights[name].detach() for name in sorted(trainable)}

        def from_peft(tensors: dict[str, Tensor]) -> None:
            take_peft(model, trainable, tensors, _peft_name)

        return Attachment(trainable=trainable, set_enabled=set_enabled, merge=merge, as_peft=as_peft, from_peft=from_peft)

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "Peft | None":
        """An adapter that no other file here reads."""
        kind = config.get("peft_type")
        if kind in OURS or importlib.util.find_spec("peft") is None:
            return None
        classes = importlib.import_module("peft.mapping").PEFT_TYPE_TO_CONFIG_MAPPING
        if kind not in classes:
            return None
        settings = {key: x for key, x in config.items() if key not in ABOUT and x is not None}
        return cls(config=classes[kind].__name__, settings=settings)

    def _config(self, peft: Any) -> Any:
        name = self.config.removesuffix("Config") + "Config"
        if not hasattr(peft, name):
            known = sorted(x.removesuffix("Config") for x in dir(peft) if x.endswith("Config") and x != "PeftConfig")
            there = f"{nearest(self.config, known)} It has: {', '.join(known)}."
            raise RecipeError(f"method.config: PEFT has no {name}.{there}")
        if issubclass(getattr(peft, name), peft.PromptLearningConfig):
            raise RecipeError(f"method.config: {self.config} learns prompts; take prompt_tuning, p_tuning or p_tuning_v2.")
        try:
            return getattr(peft, name)(**{"target_modules": "all-linear", **self.settings})
        except (TypeError, ValueError) as error:
            raise RecipeError(f"method.settings: PEFT's {name} says: {error}") from None


def _peft_name(name: str) -> str:
    return PREFIX + name.replace(f".{ADAPTER}", "")


def _is_tuner_layer(peft: Any, module: nn.Module) -> bool:
    return isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
