"""Merge one result into its base model, or several results of one base model into one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from weitiao.core import hardware
from weitiao.core.errors import ModelError
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.reporter import Reporter
from weitiao.deploy import merge as merge_into_base
from weitiao.deploy.combine import Adapter, MergeMethod
from weitiao.deploy.merge import MergeReport, probe_outputs, refuse_nonempty, verify, write_model
from weitiao.model.adapters.peft_format import write_adapter
from weitiao.model.loading.load import Base
from weitiao.pipeline.inference import open_model, read_on_one_base
from weitiao.pipeline.load import BaseAssets, apply_adapter, load_stacked_base, merge_adapter
from weitiao.pipeline.trained import TrainedRun


def merge_run(target: str, out: str) -> MergeReport:
    """Merge a run or an adapter into its base model: a folder that plain AutoModel opens.

    Raises:
        ModelError: it has a head of its own, cannot be merged, or the reloaded model gives other outputs.
    """
    model = open_model(target, precision="fp32")
    if model.model.heads:
        raise ModelError(
            "{target} has a head of its own (objective {objective}), which a plain model folder cannot hold: "
            "use `weitiao predict {target}`.",
            target=target,
            objective=model.objective.name,
        )
    return merge_into_base.merge(model.model, model.tokenizer, Path(out))


def merge_several(
    targets: Sequence[str],
    out: str,
    reporter: Reporter,
    method: str = "average",
    weights: Sequence[float] = (),
    density: float | None = None,
    seed: int | None = None,
) -> MergeReport:
    """Merge several results of one base model: a PEFT adapter where that is exact, otherwise a merged model.

    Args: as in deploy/combine.py; defaults are printed.

    Raises:
        RecipeError: an option is impossible.
        ModelError: their base models differ, one cannot be merged, or what was written gives other outputs.
    """
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
    expected = probe_outputs(base.model, assets.tokenizer, assets.architecture)
    adapter, form = merge_method.as_adapter(adapters)
    if len({str(x.tokenizer.chat_template) for _, x in results}) > 1:
        form = Message("{form}; chat templates differ, and that of {first} is used", form=form, first=targets[0])
    if adapter is None:
        feature_extractor = assets.processor.feature_extractor
        report = write_model(base.model, base.architecture, assets.tokenizer, folder, expected, feature_extractor)
    else:
        write_adapter(*adapter, folder, first.base)
        if first.template:
            (folder / "chat_template.jinja").write_text(str(assets.tokenizer.chat_template), encoding="utf-8")
        reloaded = open_model(out, "fp32").torch_model
        report = verify(folder, expected, probe_outputs(reloaded, assets.tokenizer, assets.architecture))
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
