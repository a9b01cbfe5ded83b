"""Merge one result into its base model, or several results of one base model into one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from weitiao.core import hardware
from weitiao.core.command import command
from weitiao.core.errors import InvalidValue, ModelError, RecipeError
from weitiao.core.example import Text, Turn
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.plain_form import PlainForm
from weitiao.core.reporter import Reporter
from weitiao.deploy import merge as merge_into_base
from weitiao.deploy.combine import Adapter, MergeMethod
from weitiao.deploy.generation_files import set_encoding
from weitiao.deploy.merge import (
    PROBE,
    MergeReport,
    Storage,
    check_outputs,
    probe_of,
    probe_outputs,
    refuse_nonempty,
    refuse_unmergeable,
    report_of,
    write_model,
    write_plain,
)
from weitiao.deploy.readme import write_readme
from weitiao.deploy.sentence_transformers import add_end_token, write_modules
from weitiao.model.adapters.peft_format import write_adapter
from weitiao.model.backbone.plain_class import backbone_of, expected_outputs, plain_class, set_labels
from weitiao.model.loading.load import Base
from weitiao.model.loading.weights import stored_dtype
from weitiao.pipeline.adapter_folder import write_adapter_files
from weitiao.pipeline.adapter_registry import read_on_one_base
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.load import BaseAssets, apply_adapter, attach, load_stacked_base, merge_adapter
from weitiao.pipeline.predict import RowPredictor
from weitiao.pipeline.trained import TrainedRun


def merge_run(target: str, out: str, dtype: str = "auto", task: str = "") -> MergeReport:
    """Merge a run or an adapter into its base model: a folder that plain transformers or sentence-transformers opens.

    Args:
        dtype: what the weights are stored in: fp32, bf16, fp16, or auto: as in the base.
        task: of a multi-task run, which task.

    Raises:
        ModelError: it has a head that other libraries do not know, cannot be merged, or the reloaded model gives other
            outputs.
        RecipeError: there is no such dtype or task.
    """
    check_dtype(dtype)
    model = open_model(target, precision="fp32")
    model = model.for_task(task) if task else model
    folder, storage = Path(out), storage_of(dtype, model.assets.folder)
    form = model.objective.plain_form(model.assets.architecture.kind)
    if form is not None and form.obstacle is not None:
        raise ModelError(
            "{target} cannot leave weitiao as one folder: {reason}. Use `{command} predict {target}`.",
            target=target,
            reason=form.obstacle,
            command=command(),
        )
    if form is not None:
        return write_with_head(model, form, folder, storage)
    prompt, ends_turns = example_prompt(model)
    return merge_into_base.merge(model.model, model.tokenizer, folder, storage, prompt, ends_turns)


def check_dtype(dtype: str) -> None:
    """Whether there is such a dtype.

    Raises:
        RecipeError: there is none.
    """
    if dtype != "auto" and dtype not in hardware.DTYPES:
        raise RecipeError("dtype: {dtype} is none of: auto, {known}", dtype=dtype, known=", ".join(hardware.DTYPES))


def storage_of(dtype: str, base: Path) -> Storage:
    """What merged weights are stored in; auto: what most of the base's are."""
    if dtype != "auto":
        return Storage(hardware.DTYPES[dtype])
    return Storage(stored_dtype(base) or torch.float32, Message("as in the base; --dtype chooses"))


def example_prompt(model: Model) -> tuple[list[int], bool]:
    """(a prompt as the model's users write it, or nothing; whether answers end as the chat template's turns do)."""
    is_chat = model.objective.traits.example_type is not Text and model.assets.architecture.kind == "decoder"
    if not is_chat or model.assets.processor.template is None:
        return [], False
    try:
        return model.assets.processor.prompt((Turn("user", "Hi."),)), True
    except InvalidValue:  # a template that wants other turns
        return [], True


def write_with_head(model: Model, form: PlainForm, folder: Path, storage: Storage) -> MergeReport:
    """Merge a run whose objective has a head, or one vector for a text, and write the form that other libraries know.

    Raises:
        ModelError: transformers has no such class of this family, or what was written gives other outputs.
    """
    refuse_unmergeable(model.model)
    refuse_nonempty(folder)
    torch_model, heads, tokenizer = model.torch_model, model.model.heads, model.tokenizer
    with torch.no_grad():
        model.model.attachment.merge()  # pyright: ignore[reportOptionalCall]
    limit = RowPredictor.make(model).max_length
    parsed = model.recipe is not None and all(x.parse_special_tokens for x in model.recipe.data)
    literal = not parsed and form.task != "masked_lm"  # whose texts hold the mask
    set_encoding(tokenizer, torch_model.config, model.assets.processor.stop_ids, model.assets.max_length, literal)
    if form.pooling is not None:
        plain = backbone_of(torch_model)
        set_labels(plain.config, form)
        add_end_token(tokenizer, model.assets.processor.special_tokens)
    else:
        plain = plain_class(torch_model, form, heads)
    ids = torch.tensor([tokenizer(PROBE).input_ids[:limit]], device=torch_model.device)
    expected = expected_outputs(torch_model, form, heads, ids)
    report = write_plain(plain, tokenizer, folder, form, heads, expected, ids, storage)
    if form.pooling is not None:
        write_modules(folder, form, heads, torch_model.config.get_text_config().hidden_size, limit, storage.dtype)
    write_readme(folder, form, model.objective.name)
    return report


def merge_several(
    targets: Sequence[str],
    out: str,
    reporter: Reporter,
    method: str = "average",
    weights: Sequence[float] = (),
    density: float | None = None,
    seed: int | None = None,
    dtype: str = "auto",
) -> MergeReport:
    """Merge several results of one base model: a PEFT adapter where that is exact, otherwise a merged model.

    Args: as in deploy/combine.py; defaults are printed.
        dtype: of a merged model, as in `merge_run`.

    Raises:
        RecipeError: an option is impossible.
        ModelError: their base models differ, one cannot be merged, or what was written gives other outputs.
    """
    check_dtype(dtype)
    folder, merge_method = Path(out), MergeMethod.make(method, len(targets), weights, density, seed)
    refuse_nonempty(folder)
    results = read_on_one_base(targets)
    first, assets = results[0]
    terms = ", ".join(f"{weight:g} x {target}" for weight, target in zip(merge_method.weights, targets))
    reporter.console.print(f"{merge_method.message}: {terms}", soft_wrap=True, markup=False)
    base = load_stacked_base(
        assets.folder, assets.base_chain, Method.untouched(), torch.float32, hardware.device(), assets.processor
    )
    vectors, adapters = task_vectors(base, [trained for trained, _ in results], assets, reporter)
    parameters = dict(base.model.named_parameters())
    for name, change in merge_method.combine(vectors).items():
        parameters[name].data.add_(change.to(parameters[name].device))
    merged = Model(attach(base, Method.untouched(), first.objective, assets.processor), assets, first.objective)
    prompt, ends_turns = example_prompt(merged)
    probe = probe_of(merged.model, assets.tokenizer, prompt)
    adapter, form = merge_method.as_adapter(adapters)
    if len({str(x.tokenizer.chat_template) for _, x in results}) > 1:
        form = Message("{form}; chat templates differ, and that of {first} is used", form=form, first=targets[0])
    if adapter is None:
        storage = storage_of(dtype, assets.folder)
        report = write_model(merged.model, assets.tokenizer, folder, probe, storage, ends_turns)
    else:
        write_adapter(*adapter, folder, first.base)
        write_adapter_files(merged.model, assets, first.objective, folder, with_template=bool(first.template))
        reloaded = open_model(out, "fp32").torch_model
        got = probe_outputs(reloaded, assets.tokenizer, assets.architecture)
        check_outputs(folder, probe.outputs, got)
        report = report_of(folder, probe.outputs, got, Storage())
    record = {**asdict(merge_method), "results": [{"folder": str(x.folder), "identity": x.identity} for x, _ in results]}
    write_text(folder / "merge.json", json.dumps(record, indent=1) + "\n")
    return replace(report, form=form)


def task_vectors(
    base: Base, results: Sequence[TrainedRun], assets: BaseAssets, reporter: Reporter
) -> tuple[list[dict[str, torch.Tensor]], list[Adapter | None]]:
    """What each result adds to the base weights that it changes, and its adapter; the base is unchanged afterwards."""
    before = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    vectors: list[dict[str, torch.Tensor]] = []
    adapters: list[Adapter | None] = []
    for trained in reporter.track(results, "results"):
        if trained.method.rounds_base:
            raise ModelError(
                "{target} was trained with method {method} on rounded base weights, so it has no task vector of the "
                "base itself. Merge each result alone.",
                target=trained.folder,
                method=trained.method.name,
            )
        model = apply_adapter(base, trained, assets.processor)
        if model.heads:
            raise ModelError(
                "{target} was trained with objective {objective}, whose head cannot be merged with others.",
                target=trained.folder,
                objective=trained.objective.name,
            )
        adapters.append(model.attachment.as_peft() if model.attachment.as_peft else None)
        merge_adapter(model, trained)
        now = {name: weight.data for name, weight in base.model.named_parameters()}
        differences = {name: (now[name] - weight).cpu() for name, weight in before.items()}
        vectors.append({name: x for name, x in differences.items() if bool(x.any())})
        for name, weight in before.items():
            now[name].copy_(weight)
    return vectors, adapters
