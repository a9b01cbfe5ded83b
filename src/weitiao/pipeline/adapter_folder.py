"""The adapter folder of a result in PEFT's format, and the files next to it that other tools need to answer as we do."""

from pathlib import Path
from typing import Any

from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.trainable_model import TrainableModel
from weitiao.deploy.merging.generation_files import write_generation_config
from weitiao.deploy.readme import write_lines
from weitiao.model.adapters.peft_format import with_head, write_adapter
from weitiao.model.backbone.plain_class import names_in_class
from weitiao.pipeline.load import BaseAssets

TEMPLATE = "chat_template.jinja"
PEFT_TASKS = {"token_classification": "TOKEN_CLS", "question_answering": "QUESTION_ANS"}
CLASSES = {"token_classification": "AutoModelForTokenClassification", "question_answering": "AutoModelForQuestionAnswering"}


def write_adapter_folder(
    model: TrainableModel, assets: BaseAssets, objective: Objective, recipe: Recipe, folder: Path
) -> Message | None:
    """Write an adapter that is complete where it is opened.

    Returns:
        Why there is none; None: it is written.
    """
    torch_model: Any = model.model
    form = objective.plain_form(assets.architecture.kind)
    if model.attachment.as_peft is None:
        return Message("PEFT has no adapter format for method {method}", method=recipe.method.name)
    config, tensors = model.attachment.as_peft()
    if form is not None and form.task in PEFT_TASKS and form.obstacle is None:
        weight, bias = form.linear(model.heads)
        assert weight is not None
        try:
            head, prefixes = names_in_class(torch_model, form, weight)
        except ModelError as error:
            return error.message
        adapter = with_head(config, tensors, PEFT_TASKS[form.task], prefixes, head, weight, bias)
        if adapter is None:
            return Message("PEFT cannot hold method {method} together with a head", method=recipe.method.name)
        config, tensors = adapter
    elif model.heads:
        return Message(
            "PEFT's format cannot hold the head of objective {objective}; `merge` writes a folder with it",
            objective=objective.name,
        )
    write_adapter(config, tensors, folder, recipe.base)
    write_adapter_files(model, assets, objective, folder, with_template=bool(recipe.chat_template))
    return None


def write_adapter_files(
    model: TrainableModel, assets: BaseAssets, objective: Objective, folder: Path, with_template: bool
) -> None:
    """generation_config.json with the stop tokens, the chat template where it is not the base's, and README.md."""
    torch_model: Any = model.model
    form = objective.plain_form(assets.architecture.kind)
    lines: list[Message | str] = [Message("Trained with weitiao, objective {objective}.", objective=objective.name)]
    if form and form.task in CLASSES:
        lines.append(
            Message(
                "Open it with PEFT, its head included: PeftModel.from_pretrained({cls}.from_pretrained(BASE, "
                "num_labels={n}), FOLDER)",
                cls=CLASSES[form.task],
                n=len(form.labels) or 2,
            )
        )
    elif assets.extension is not None:
        lines += new_token_lines(len(assets.tokenizer))
    else:
        lines.append(Message("Open it with PEFT: PeftModel.from_pretrained(BASE MODEL, FOLDER)"))
    if form and form.labels:
        lines.append(Message("Outputs, in order: {labels}", labels=", ".join(form.labels)))
    if form and form.pooling:
        lines.append(Message("The vector of a text is pooled from its hidden states: {pooling}", pooling=form.pooling))
    if form is None and torch_model.can_generate():
        write_generation_config(folder, torch_model.generation_config, assets.processor.stop_ids)
        stops = " / ".join(assets.tokenizer.convert_ids_to_tokens(list(assets.processor.stop_ids)))
        lines.append(
            Message(
                "Answers end with {stops}. The base's own settings may lack it: give generate "
                "generation_config=GenerationConfig.from_pretrained(FOLDER)",
                stops=stops,
            )
        )
    if assets.extension is not None:
        assets.tokenizer.save_pretrained(folder)
    if with_template:
        (folder / TEMPLATE).write_text(str(assets.tokenizer.chat_template), encoding="utf-8")
        lines.append(Message("It was trained with the chat template in {file}, not with the base's.", file=TEMPLATE))
    write_lines(folder, lines)


def new_token_lines(size: int) -> list[Message | str]:
    """How plain PEFT opens an adapter with new tokens."""
    return [
        Message(
            "It has new tokens. Its tokenizer is in this folder, and the base needs rows for them before it is opened:"
        ),
        f"base.resize_token_embeddings({size}); PeftModel.from_pretrained(base, FOLDER)",
    ]
