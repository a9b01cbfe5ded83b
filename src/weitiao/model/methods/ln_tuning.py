"""LayerNorm tuning: only the norms' scales (and shifts) are trained.

Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", arXiv 2312.11420, sec. 3:

    y = w * x / rms(x) (+ b)          w (and b) of every norm

A few thousand weights. Merged already: the norms are the model's own. Stored in PEFT's format, and equal there.
"""

from typing import Any, ClassVar

from torch import Tensor, nn

from weitiao.core.errors import RecipeError
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_structure import peft_task
from weitiao.model.adapters.surgery import PREFIX, Originals, norm_names, take_peft


class LNTuning(Method):
    """Train the norms' weights."""

    learning_rate: ClassVar[float] = 2e-3
    learning_rate_reason: ClassVar[str] = "few weights near one need far higher rates than matrices"
    trains_base: ClassVar[bool] = True

    target_modules: str | tuple[str, ...] = "all"
    """Which norms: all, or names' ends ([input_layernorm, post_attention_layernorm])."""

    def attach(self, model: nn.Module) -> Attachment:
        """Norms are trained in place.

        Raises:
            RecipeError: no norm has such a name.
        """
        every = norm_names(model)
        wanted = (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules
        norms = every if wanted == ("all",) else [x for x in every if any(f".{x}".endswith(f".{w}") for w in wanted)]
        if not norms:
            there = ", ".join(sorted({name.rpartition(".")[2] for name in every}))
            raise RecipeError(f"target_modules: no norm matches {wanted[0]!r}; names are: {there}.")
        model.requires_grad_(False)
        trainable = {f"{name}.{key}" for name in norms for key, _ in model.get_submodule(name).named_parameters()}
        weights = dict(model.named_parameters())
        for name in trainable:
            weights[name].requires_grad_(True)
        stored = {name: _peft_name(name) for name in trainable}

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            return _config(model, norms), {peft: weights[name].detach() for name, peft in stored.items()}

        return Attachment(
            trainable=trainable,
            set_enabled=Originals(model, trainable).set_enabled,
            merge=lambda: None,
            as_peft=as_peft,
            from_peft=lambda tensors: take_peft(model, trainable, tensors, _peft_name),
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "LNTuning | None":
        """PEFT's LN tuning of all norms."""
        if config.get("peft_type") != "LN_TUNING":
            return None
        targets = config["target_modules"]
        return cls(target_modules=targets if isinstance(targets, str) else tuple(targets))


def _peft_name(name: str) -> str:
    layer, _, key = name.rpartition(".")
    return f"{PREFIX}{layer}.ln_tuning_layers.{key}"


def _config(model: nn.Module, norms: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LN_TUNING",
        "task_type": peft_task(model),
        "target_modules": sorted(norms),
        "inference_mode": True,
    }
