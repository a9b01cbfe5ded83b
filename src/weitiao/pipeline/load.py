"""A base model with what a recipe puts on it: tokenizer, runs merged into the base, method, heads, initial weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from weitiao.core.architecture import Architecture
from weitiao.core.command import command
from weitiao.core.errors import ModelError, RecipeError, RunError, message_of
from weitiao.core.example import Text
from weitiao.core.finding import Decision
from weitiao.core.messages import Message, joined
from weitiao.core.method import Method
from weitiao.core.objective import MASKED, Objective
from weitiao.core.processor import Processor
from weitiao.core.recipe import Recipe
from weitiao.core.trainable_model import HEAD, BaseIdentity, TrainableModel, identity_of
from weitiao.data.audio import load_feature_extractor
from weitiao.data.chat.template import read_template, tokenizer_identity
from weitiao.data.tokenization import ChatProcessor
from weitiao.model.adapters.new_rows import train_new_rows
from weitiao.model.backbone.choose import choose_backbone
from weitiao.model.backbone.mlm_head import masked_head
from weitiao.model.generation.choose import make_engine
from weitiao.model.layers.shape_trace import moved
from weitiao.model.loading.load import Base, load_architecture, load_base, load_generation, load_tokenizer
from weitiao.model.loading.sources import resolve_base
from weitiao.pipeline.trained import TrainedRun, base_chain, read_trained
from weitiao.pipeline.vocabulary import NewTokens, VocabularyExtension

OVERLONG = ("auto", "error", "drop_turns")
NO_LIMIT = 10**12  # tokens; a tokenizer without a limit says 10**30


@dataclass
class BaseAssets:
    """A base model's folder, architecture, tokenizer and processor."""

    folder: Path
    architecture: Architecture
    tokenizer: PreTrainedTokenizerBase
    processor: ChatProcessor
    identity: str
    """A hash of the tokenizer's files and of the chat template."""
    base_chain: tuple[TrainedRun, ...] = ()
    """Runs that are merged into the base model, the lowest first."""
    extension: VocabularyExtension | None = None
    """Of the run on top, where it extended the vocabulary."""
    system: str = ""
    """The system message that all rows of the run had; "" if they had none, or several."""
    history_tokens: int | None = None
    """Tokens that a conversation with its answer may have before exchanges are left out of a prompt; None: none are. Of a
    run with `overlong: drop_turns`, its max_length."""
    continues_text: bool = False
    """A prompt is the beginning of a text, since nothing was trained on conversations."""

    @property
    def max_length(self) -> int | None:
        """The most tokens the model takes, by its config and its tokenizer; None: neither names a limit."""
        limits = self.architecture.max_length, self.tokenizer.model_max_length
        return min((int(x) for x in limits if x and x < NO_LIMIT), default=None)


def open_trained_assets(trained: TrainedRun) -> BaseAssets:
    """What a result was trained with: its base's tokenizer, its chat template with its date, its system message."""
    recipe = trained.recipe
    literal = recipe is None or not all(x.parse_special_tokens for x in recipe.data)
    own = trained.base, trained.revision, trained.template, trained.recorded("date")
    assets = open_base_assets(*own, not literal, trained.extension)
    continues_text = assets.continues_text or trained.objective.traits.example_type is Text
    system = trained.recorded("system") or ""
    return replace(assets, system=system, history_tokens=trained.history_tokens, continues_text=continues_text)


def with_overlong(assets: BaseAssets, overlong: str) -> BaseAssets:
    """The assets with what is to be done with a conversation that is too long for a prompt.

    Args:
        overlong: error; drop_turns: whole exchanges are left out, as in training; auto: as the run was trained.

    Raises:
        ModelError: there is no such choice.
    """
    if overlong not in OVERLONG:
        raise ModelError("overlong: there is no {value!r}; there are: {known}", value=overlong, known=", ".join(OVERLONG))
    if overlong == "auto":
        return assets
    most = assets.history_tokens or assets.max_length if overlong == "drop_turns" else None
    return replace(assets, history_tokens=most)


def open_base_assets(
    base: str,
    revision: str | None = None,
    template: str | None = None,
    date: str | None = None,
    parse_special_tokens: bool = False,
    extension: VocabularyExtension | None = None,
) -> BaseAssets:
    """Everything about a base but its weights.

    Args:
        base: as in a recipe: a model, or a finished run.
        template: a chat template that replaces the model's own.
        date: that a chat template writes, in ISO format; default: now.
        parse_special_tokens: special tokens that texts spell become control tokens.
        extension: of the run on top of the base.

    Raises:
        ModelError, RunError: it cannot be found or read.
    """
    chain = base_chain(base)
    if chain:
        base, revision = chain[0].base, chain[0].revision
        template = template or next((x.template for x in reversed(chain) if x.template), None)
    folder = resolve_base(base, revision)
    newest = next((x.extension for x in reversed(chain) if x.extension), None) if extension is None else extension
    files = folder if newest is None else newest.folder
    architecture, tokenizer = load_architecture(folder), load_tokenizer(files, read_template(template))
    stop_ids: Any = load_generation(folder).eos_token_id
    feature_extractor = load_feature_extractor(folder, tokenizer) if architecture.modality == "speech" else None
    processor = ChatProcessor.make(
        tokenizer,
        stop_ids if isinstance(stop_ids, list) else [stop_ids],
        architecture.decoder_start_id,
        feature_extractor,
        datetime.fromisoformat(date) if date else None,
    )
    identity = tokenizer_identity(files, tokenizer.chat_template, processor.template)
    processor = processor.parsing_special_tokens if parse_special_tokens else processor
    continues_text = processor.template is None and architecture.kind == "decoder"
    own = folder, architecture, tokenizer, processor, identity, chain, extension
    return BaseAssets(*own, continues_text=continues_text)


def load(
    assets: BaseAssets, method: Method, objective: Objective, dtype: torch.dtype, device: torch.device
) -> tuple[TrainableModel, list[Decision]]:
    """The base model with its runs merged, the method attached and the objective's heads; and what was decided."""
    base = load_stacked_base(assets.folder, assets.base_chain, method, dtype, device, assets.processor)
    tokens = extend_base(base, assets.extension)
    stored = sum(p.numel() for p in base.model.parameters())
    identity = BaseIdentity(identity_of(base.model), identity_of(base.model, torch.bfloat16))
    model = attach(base, method, objective, assets.processor, tokens)
    model.base_identity = identity
    trainable = sum(p.numel() for p in model.trainable().values())
    # base.num_weights counts quantized weights as they were; what was attached since is added
    total = base.num_weights - stored + sum(p.numel() for p in (*base.model.parameters(), *model.heads.parameters()))
    share = Message("{method}: {share:.2%} of {total:,}", method=method.name, share=trainable / total, total=total)
    trained = Decision("model.trainable_weights", trainable, share)
    return model, [*base.decisions, trained, *([served_as(model, method)] if model.attachment.trainable else [])]


def served_as(model: TrainableModel, method: Method) -> Decision:
    """In which form other programs can serve the result: said before training, not when it is served."""
    attachment, key = model.attachment, "deploy.form"
    config = attachment.as_peft()[0] if attachment.as_peft is not None else {}
    is_lora = config.get("peft_type") == "LORA" and not config.get("use_dora") and config.get("bias", "none") == "none"
    plain = not (model.heads or config.get("modules_to_save") or config.get("trainable_token_indices"))
    if is_lora and plain and attachment.merge is not None:
        return Decision(key, "adapter", Message("vLLM and llama.cpp serve it as an adapter; `merge` makes a model of it"))
    if attachment.merge is not None:
        reason = Message(
            "no server takes method {method} as an adapter: merge it to serve it elsewhere", method=method.name
        )
        if is_lora:
            reason = Message("no server takes an adapter with a head or with whole modules: merge it to serve it elsewhere")
        if config.get("trainable_token_indices"):
            reason = Message("no server takes an adapter with new tokens: merge it to serve it elsewhere")
        return Decision(key, "merge", reason)
    reason = Message("method {method} cannot be merged, and no server takes it: weitiao serves it", method=method.name)
    return Decision(key, "run", reason)


# -- a run as base ----------------------------------------------------------------------------------------------------


def load_stacked_base(
    folder: Path,
    chain: Sequence[TrainedRun],
    method: Method,
    dtype: torch.dtype,
    device: torch.device,
    processor: Processor,
) -> Base:
    """The base model in a folder with every run of the chain merged into its weights, stored as a method needs it.

    Raises:
        RecipeError: the method on top loads the base in its own format, into which nothing can be merged.
        ModelError: a method in the chain cannot be merged.
    """
    options = method.load_options()
    if not chain:
        return load_base(folder, dtype, device, options, method.prepare)
    if options.keys() - {"dtype"}:
        raise RecipeError(
            "base: this method loads the base model in its own format, so the base cannot be a run. Merge it first "
            "({command} merge {run} --out FOLDER) and take base: FOLDER",
            command=command(),
            run=chain[-1].folder,
        )
    base = load_base(folder, torch.float32, device)
    for trained in chain:
        merge_adapter(apply_adapter(base, trained, processor, extend_base(base, trained.extension)), trained)
    stored = options.get("dtype", dtype)
    for weight in base.model.parameters():
        weight.data = weight.data.to(stored)
    method.prepare(base.model, device)
    model: Any = base.model  # transformers' own `to` has no usable type
    backbone, decision = choose_backbone(model.to(device), dtype)
    merged = Decision("base", chain[0].base, Message("merged into its weights in memory: {runs}", runs=_described(chain)))
    return Base(base.model, base.architecture, backbone, base.lm_head, [decision, merged], base.num_weights, folder)


def extend_base(base: Base, extension: VocabularyExtension | None) -> NewTokens | None:
    """Give the base rows for the new tokens of the run that comes on top of it."""
    if extension is None:
        return None
    tokens = NewTokens.of(extension)
    base.num_weights += tokens.add_to(base.model)
    return tokens


def _described(chain: Sequence[TrainedRun]) -> Message:
    """The runs of a chain with their methods, in the order they are merged."""
    runs: list[Message | str] = []
    for trained in chain:
        parts = trained.objective.parts().values()
        has_head = any(part.heads(1) or part.traits.needs_mlm_head for part in parts)
        details: list[Message | str] = [trained.method.name]
        details += [trained.unfinished] if trained.unfinished else []
        details += [Message("without its head")] if has_head else []
        runs.append(Message("{folder} ({details})", folder=trained.folder, details=joined(", ", details)))
    return joined(", ", runs)


def apply_adapter(base: Base, trained: TrainedRun, processor: Processor, tokens: NewTokens | None = None) -> TrainableModel:
    """The base model with a run's method attached and its weights loaded; random generators stay unchanged."""
    cuda = [x.device for x in base.model.parameters() if x.is_cuda][:1]
    with torch.random.fork_rng(devices=cuda):
        model = attach(base, trained.method, trained.objective, processor, tokens)
    trained.load_weights(model)
    return model


def merge_adapter(model: TrainableModel, trained: TrainedRun) -> None:
    """Merge what was trained into the base weights, in place; a plain model remains.

    Raises:
        ModelError: the method cannot be merged.
    """
    if model.attachment.merge is None:
        raise ModelError(
            "{folder}: method {method} cannot be merged into the base weights, so the run can be neither a base nor "
            "combined with others; use the run folder with chat, generate or evaluate",
            folder=trained.folder,
            method=trained.method.name,
        )
    with torch.no_grad():
        model.attachment.merge()
    model.model.requires_grad_(False)


# -- method and heads -------------------------------------------------------------------------------------------------


def attach(
    base: Base, method: Method, objective: Objective, processor: Processor, tokens: NewTokens | None = None
) -> TrainableModel:
    """The base model with a method attached and the objective's heads.

    Args:
        tokens: new ones, which the base has rows for; they are trained with the method.
    """
    try:
        attachment = method.fit(processor.text).attach(base.model)
    except RecipeError as error:
        if error.message.template.startswith("method"):
            raise
        raise RecipeError("method: {error}", error=message_of(error)) from None
    if not objective.traits.generative:
        attachment.trainable -= output_head(base.model)
    if tokens is not None:
        own = tokens.first, len(tokens.pieces), objective.traits.generative
        attachment = train_new_rows(base.model, attachment, *own)
    layers, decisions = heads_for(base.model, objective, base.folder)
    base.decisions += decisions
    heads = moved(torch.nn.ModuleDict(layers), next(base.model.parameters()).device)
    base.model.eval()
    if base.model.can_generate():
        base.model.generation_config.update(**objective.generation_settings(processor))  # pyright: ignore[reportOptionalMemberAccess]
    fields = (attachment, processor, base.architecture, base.backbone, base.lm_head, heads)
    return TrainableModel(base.model, *fields, _make_engine=make_engine)


def heads_for(
    model: PreTrainedModel, objective: Objective, folder: Path | None = None
) -> tuple[dict[str, torch.nn.Module], list[Decision]]:
    """The objective's heads by name, "task/name" with several tasks, and the decisions to report.

    Args:
        folder: the folder of the base model, which holds its own masked-LM head.
    """
    width = model.config.get_text_config().hidden_size
    heads, decisions = objective.heads(width), []
    for task, part in objective.parts().items():
        task_heads = part.heads(width) if task else {}
        if part.traits.needs_mlm_head:
            task_heads[MASKED], decision = masked_head(model, folder)
            decisions.append(decision)
        heads |= {f"{task}/{name}" if task else name: head for name, head in task_heads.items()}
    return heads, decisions


def output_head(model: PreTrainedModel) -> set[str]:
    """Names of the weights of an untied LM head: an objective with its own head does not train them."""
    head = model.get_output_embeddings()
    if head is None:
        return set()
    own = {id(x) for x in head.parameters()} - {id(model.get_input_embeddings().weight)}
    return {name for name, x in model.named_parameters() if id(x) in own}


# -- warm start -------------------------------------------------------------------------------------------------------


def warm_start(init_from: str | None, model: TrainableModel, recipe: Recipe, objective: Objective) -> list[Decision]:
    """Load the weights of a finished run of the same base and method as the initial weights.

    Args:
        objective: the objective that is trained now; heads with other labels start fresh.

    Returns:
        The decision to report, or none where the recipe has no `init_from`.

    Raises:
        RunError: there is no such run.
        RecipeError: it has another base or method, or weights of other shapes.
    """
    if init_from is None:
        return []
    source = read_trained(init_from)
    if source is None or source.recipe is None:
        raise RunError("init_from: there is no run in {folder}", folder=init_from)
    for key, expected, actual in (("base", recipe.base, source.base), ("method", recipe.method, source.method)):
        if expected != actual:
            raise RecipeError(
                "init_from: {folder} has another {key}; a warm start needs the same one. To train on top of that run, "
                "write base: {folder}",
                folder=init_from,
                key=key,
            )
    saved = load_file(source.weights)
    target: dict[str, Any] = {**model.trainable(), **{f"buffer.{name}": x for name, x in model.buffers().items()}}
    matching = {name for name, x in target.items() if name in saved and saved[name].shape == x.shape}
    relabelled = _heads_with_other_labels(source.objective, objective)
    fresh = {name for name in target if name.startswith(HEAD) and (name not in matching or name.startswith(relabelled))}
    if missing := sorted(target.keys() - fresh - matching):
        raise RecipeError(
            "init_from: {folder} has no {name} of this shape; is it the same base and method?",
            folder=init_from,
            name=missing[0],
        )
    with torch.no_grad():
        for name in target.keys() - fresh:
            target[name].copy_(saved[name])
    model.warm_started = True
    heads = ", ".join(sorted({name.removeprefix(HEAD).rpartition(".")[0] for name in fresh}))
    if heads:
        return [
            Decision("init_from", init_from, Message("weights of that run; the head {heads} starts fresh", heads=heads))
        ]
    return [Decision("init_from", init_from, Message("weights of that run"))]


def _heads_with_other_labels(source: Objective, target: Objective) -> tuple[str, ...]:
    """Prefixes of the heads that stand for other labels, or for a task that the source does not have."""
    before, after = source.parts(), target.parts()
    prefixes = tuple(
        f"{HEAD}{task}/" if task else HEAD
        for task, part in after.items()
        if task not in before or before[task].name != part.name or _labels(before[task]) != _labels(part)
    )
    return prefixes if list(before) == list(after) else (*prefixes, f"{HEAD}weights.")  # the learned task weights


def _labels(objective: Objective) -> tuple[str, ...]:
    """What the outputs of its head stand for."""
    form = objective.plain_form("")
    return form.labels if form else ()
