"""LayerNorm tuning: only the norms' scales (and shifts) are trained.

Zhao et al. 2023, "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", arXiv 2312.11420, sec. 3:

    y = w * x / rms(x) (+ b)          w (and b) of every norm

A few thousand weights. They are the model's own, so the result is always merged. Stored in PEFT's format, with the same
logits there.
"""

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Attachment, Method
from weitiao.model.adapters.module_replacement import OriginalWeights, norm_names
from weitiao.model.adapters.peft_format import PREFIX, load_peft_tensors, peft_task


class LNTuning(Method):
    """Train the weights of the norms."""

    learning_rate: ClassVar[float] = 2e-3
    learning_rate_reason: ClassVar[Message] = Message("few weights, all near 1, need far higher rates than matrices")
    trains_base: ClassVar[bool] = True

    target_modules: str | tuple[str, ...] = "all"
    """Which norms: all, or last names ([input_layernorm, post_attention_layernorm])."""

    def attach(self, model: PreTrainedModel) -> Attachment:
        """Make the norms' weights trainable, in place.

        Raises:
            RecipeError: no norm has such a name.
        """
        all_norms = norm_names(model)
        targets = (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules
        norms = (
            all_norms
            if targets == ("all",)
            else [x for x in all_norms if f".{x}".endswith(tuple(f".{t}" for t in targets))]
        )
        if not norms:
            raise RecipeError(
                "method.target_modules: no norm matches {target!r}; the norms are named: {names}.",
                target=targets[0],
                names=", ".join(sorted({name.rpartition(".")[2] for name in all_norms})),
            )
        model.requires_grad_(False)
        trainable = {f"{name}.{key}" for name in norms for key, _ in model.get_submodule(name).named_parameters()}
        weights = dict(model.named_parameters())
        for name in trainable:
            weights[name].requires_grad_(True)

        def as_peft() -> tuple[dict[str, Any], dict[str, Tensor]]:
            return _config(model, norms), {_peft_name(name): weights[name].detach() for name in trainable}

        return Attachment(
            trainable=trainable,
            set_enabled=OriginalWeights(model, trainable).set_enabled,
            merge=lambda: None,
            as_peft=as_peft,
            from_peft=lambda tensors: load_peft_tensors(model, trainable, tensors, _peft_name),
        )

    @classmethod
    def from_peft_config(cls, config: dict[str, Any]) -> "LNTuning | None":
        """The LNTuning that a PEFT adapter_config.json describes."""
        if config.get("peft_type") != "LN_TUNING":
            return None
        targets = config["target_modules"]
        return cls(target_modules=targets if isinstance(targets, str) else tuple(targets))


def _peft_name(name: str) -> str:
    layer, _, key = name.rpartition(".")
    return f"{PREFIX}{layer}.ln_tuning_layers.{key}"


def _config(model: PreTrainedModel, norms: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LN_TUNING",
        "task_type": peft_task(model),
        "target_modules": sorted(norms),
        "inference_mode": True,
    }
