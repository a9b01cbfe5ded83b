"""A model with an objective's head as one of transformers' own classes: BertForTokenClassification and its kind."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from weitiao.core.errors import ModelError
from weitiao.core.objective import MASKED
from weitiao.core.plain_form import PlainForm
from weitiao.model.backbone.mlm_head import LAYOUTS

CLASSES: dict[str, Any] = {
    "token_classification": AutoModelForTokenClassification,
    "question_answering": AutoModelForQuestionAnswering,
    "masked_lm": AutoModelForMaskedLM,
}


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part from token ids to hidden states, without a language-model head."""
    backbone: Any = model.base_model
    return backbone


def set_labels(config: Any, form: PlainForm) -> None:
    """The names of the outputs, in a config."""
    if form.labels:
        config.id2label = dict(enumerate(form.labels))
        config.label2id = {name: i for i, name in enumerate(form.labels)}
    if form.problem_type:
        config.problem_type = form.problem_type


def names_in_class(model: PreTrainedModel, form: PlainForm, weight: Tensor) -> tuple[str, tuple[str, str]]:
    """(what transformers' class of the form calls the head, the inner model's prefix in the model and in the class).

    Raises:
        ModelError: the family has no such class, or one with another head.
    """
    with torch.device("meta"):
        target = _new_class(model, form)
    own = "" if backbone_of(model) is model else f"{model.base_model_prefix}."
    if own not in ("", f"{target.base_model_prefix}."):  # the class could not even open the base model
        raise no_class(model, form)
    return _only_linear(target, model, form, weight)[0], (own, f"{target.base_model_prefix}.")


def plain_class(model: PreTrainedModel, form: PlainForm, heads: nn.ModuleDict) -> PreTrainedModel:
    """Transformers' model of the form's task with these weights.

    Raises:
        ModelError: the family has no such class, or one with another head.
    """
    target = _new_class(model, form)
    own = getattr(target, target.base_model_prefix)
    missing, unexpected = own.load_state_dict(backbone_of(model).state_dict(), strict=False)
    if unexpected or any(not name.startswith("pooler") for name in missing):
        raise no_class(model, form)
    if form.task == "masked_lm":
        _copy_masked_head(target, heads[MASKED], model, form)
        return target.eval()
    weight, bias = form.linear(heads)
    assert weight is not None
    layer = _only_linear(target, model, form, weight)[1]
    if bias is not None and layer.bias is None:
        raise no_class(model, form)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    return target.eval()


def _new_class(model: PreTrainedModel, form: PlainForm) -> Any:
    config: Any = copy.deepcopy(model.config)
    set_labels(config, form)
    try:
        target: Any = CLASSES[form.task].from_config(config, attn_implementation="eager")
    except (ValueError, KeyError):
        raise no_class(model, form) from None
    if not isinstance(getattr(target, target.base_model_prefix, None), type(backbone_of(model))):
        raise no_class(model, form)
    return target


def _only_linear(target: Any, model: PreTrainedModel, form: PlainForm, weight: Tensor) -> tuple[str, nn.Linear]:
    """The head of a class, where that is one linear layer with a weight of this shape."""
    own = {id(x) for x in getattr(target, target.base_model_prefix).modules()}
    linears = [(name, x) for name, x in target.named_modules() if isinstance(x, nn.Linear) and id(x) not in own]
    if len(linears) != 1 or linears[0][1].weight.shape != weight.shape:
        raise no_class(model, form)
    return linears[0]


def no_class(model: PreTrainedModel, form: PlainForm) -> ModelError:
    """What to say where transformers has no class of the form."""
    return ModelError(
        "transformers has no {task} class of family {family} with just one linear layer on the hidden states",
        task=form.task,
        family=model.config.model_type,
    )


def _copy_masked_head(target: Any, head: nn.Module, model: PreTrainedModel, form: PlainForm) -> None:
    parameters, own = dict(target.named_parameters()), dict(head.named_parameters())
    for dense, norm, bias in LAYOUTS:
        if f"{dense}.weight" not in parameters:
            continue
        names = {"dense.weight": f"{dense}.weight", "dense.bias": f"{dense}.bias", "bias": bias}
        names |= {f"norm.{x}": f"{norm}.{x}" for x in ("weight", "bias")}
        if not all(name in parameters for name in names.values()):
            break
        with torch.no_grad():
            for source, name in names.items():
                parameters[name].copy_(own[source])
        target.tie_weights()
        return
    raise no_class(model, form)


@torch.no_grad()
def expected_outputs(model: PreTrainedModel, form: PlainForm, heads: nn.ModuleDict, ids: Tensor) -> Tensor:
    """[1, T, C] fp32: what the head gives on the model's own hidden states."""
    hidden = backbone_of(model)(input_ids=ids).last_hidden_state.float()
    if form.task == "masked_lm":
        head: Any = heads[MASKED]
        embedding: Any = model.get_input_embeddings()
        return (head(hidden) @ embedding.weight.T.float() + head.bias).cpu()
    weight, bias = form.linear(heads)
    return (hidden if weight is None else nn.functional.linear(hidden, weight, bias)).cpu()
