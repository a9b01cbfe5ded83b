"""Several results on one base: combined into one, or side by side, each prompt through its own. Beside opened.py."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from weitiao.core import hardware
from weitiao.core.errors import ModelError
from weitiao.core.files import file_sha256, write_text
from weitiao.core.method import Method
from weitiao.core.reporter import Reporter
from weitiao.data.prompts import read_prompts
from weitiao.deploy.combine import Adapter, Combined, MergeMethod
from weitiao.deploy.merge import answers, refuse_full, verify, write_model
from weitiao.model.adapters.multi_adapter import attach_all, detach
from weitiao.model.adapters.peft_format import write_adapter
from weitiao.model.loading.load import Base
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.train import BaseAssets, open_base_assets
from weitiao.pipeline.trained import TrainedRun, apply_adapter, attach, check_unchanged, fold, read_trained, stand

TOGETHER = 256  # prompts that are sorted by length and written before the first answer is told


def read_on_one_base(targets: Sequence[str]) -> list[tuple[TrainedRun, BaseAssets]]:
    """Several results, and the words of each.

    Raises:
        ModelError: one is no result, or they stand on different base models.
    """
    found: list[tuple[TrainedRun, BaseAssets]] = []
    for target in targets:
        learnt = read_trained(target)
        if learnt is None:
            raise ModelError(f"{target} is neither a run nor an adapter in PEFT's format, so there is no change in it.")
        tokens = open_base_assets(learnt.base, learnt.revision, learnt.template)
        check_unchanged(learnt, tokens.below)
        found.append((learnt, tokens))
        if not share_base(tokens, found[0][1]):
            words = "what was learnt on different base models does not go together"
            raise ModelError(f"{target} stands on {learnt.base}, but {targets[0]} on {found[0][0].base}: {words}.")
    return found


def share_base(one: BaseAssets, other: BaseAssets) -> bool:
    """The same base weights, with the same results folded into them."""
    stacks = [[x.identity for x in tokens.below] for tokens in (one, other)]
    return stacks[0] == stacks[1] and (one.folder.samefile(other.folder) or _weights(one) == _weights(other))


def _weights(tokens: BaseAssets) -> list[str]:
    return [file_sha256(x) for x in sorted(tokens.folder.glob("*.safetensors"))]


def combine(
    targets: Sequence[str],
    out: str,
    reporter: Reporter,
    how: str = "average",
    weights: Sequence[float] = (),
    density: float | None = None,
    seed: int | None = None,
) -> Combined:
    """Make one of several results on one base: a PEFT adapter where that is exact, else a merged model; proven.

    Args: as in deploy/combine.py; what is left out is said.

    Raises:
        RecipeError: it is asked for in a way that cannot be.
        ModelError: they stand on different bases, one cannot be folded, or what was written answers differently.
    """
    folder, way = Path(out), MergeMethod.asked(how, len(targets), weights, density, seed)
    refuse_full(folder)
    results = read_on_one_base(targets)
    first, tokens = results[0]
    shares = ", ".join(f"{weight:g} x {target}" for weight, target in zip(way.weights, targets))
    reporter.console.print(f"{way.message}: {shares}", soft_wrap=True, markup=False)
    base = stand(tokens.folder, tokens.below, Method.untouched(), torch.float32, hardware.device(), tokens.processor)
    changes, adapters = task_vectors(base, [x for x, _ in results], tokens, reporter)
    here = dict(base.model.named_parameters())
    for name, change in way.combine(changes).items():
        here[name].data.add_(change.to(here[name].device))
    wanted = answers(base.model, tokens.tokenizer, tokens.architecture)
    whole, form = way.form(adapters)
    if len({str(x.tokenizer.chat_template) for _, x in results}) > 1:
        form += f"; their chat templates differ, and it has that of {targets[0]}"
    if whole is None:
        proof = write_model(
            base.model, base.architecture, tokens.tokenizer, folder, wanted, tokens.processor.feature_extractor
        )
    else:
        write_adapter(*whole, folder, first.base)
        if first.template:
            (folder / "chat_template.jinja").write_text(tokens.tokenizer.chat_template, encoding="utf-8")
        proof = verify(folder, wanted, answers(open_model(out, "fp32").model.model, tokens.tokenizer, tokens.architecture))
    record = {**asdict(way), "of": [{"folder": str(x.folder), "identity": x.identity} for x, _ in results]}
    write_text(folder / "combination.json", json.dumps(record, indent=1) + "\n")
    return Combined(proof, form)


def task_vectors(
    base: Base, results: Sequence[TrainedRun], tokens: BaseAssets, reporter: Reporter
) -> tuple[list[dict[str, torch.Tensor]], list[Adapter | None]]:
    """What each result adds to the base weights, where it changes them, and its adapter; the base stays as it is."""
    before = {name: weight.detach().clone() for name, weight in base.model.named_parameters()}
    changes: list[dict[str, torch.Tensor]] = []
    adapters: list[Adapter | None] = []
    for learnt in reporter.track(results, "results"):
        if learnt.method.rounds_base:
            words = f"was learnt with {learnt.method.name}, which cannot be folded into the base weights as they are"
            raise ModelError(f"{learnt.folder} {words}: it rounds them. Merge each result, and compare those.")
        model = apply_adapter(base, learnt, tokens.processor)
        if model.heads:
            words = f"was learnt with objective: {learnt.objective.name}, and its head cannot be combined with others"
            raise ModelError(f"{learnt.folder} {words}.")
        adapters.append(model.attachment.as_peft() if model.attachment.as_peft else None)
        fold(model, learnt)
        now = {name: weight.data for name, weight in base.model.named_parameters()}
        moved = {name: (now[name] - weight).cpu() for name, weight in before.items()}
        changes.append({name: x for name, x in moved.items() if bool(x.any())})
        for name, weight in before.items():
            now[name].copy_(weight)
    return changes, adapters


def open_many(target: str, adapters: Mapping[str, str]) -> Model:
    """Several adapters side by side on one base: each prompt, or each row of a batch, goes through the one it names.

    Args:
        target: the base they stand on, as a recipe would name it.
        adapters: a name for each -> its Run or PEFT adapter folder.

    Raises:
        ModelError: one stands on another base, or does more than change linear layers by a low rank.
    """
    results, tokens = read_on_one_base(tuple(adapters.values())), open_base_assets(target)
    first, words = results[0]
    if not share_base(tokens, words):
        raise ModelError(f"{first.folder} stands on {first.base}, not on {target}. Name {first.base} instead.")
    wishes = {learnt.precision for learnt, _ in results}
    dtype = hardware.precision(wishes.pop() if len(wishes) == 1 else "auto")[0]
    base = stand(tokens.folder, tokens.below, Method.untouched(), dtype, hardware.device(), tokens.processor)
    layers = {}
    for name, (learnt, own) in zip(adapters, results):
        if own.processor.stop_ids != words.processor.stop_ids:
            raise ModelError(f"{learnt.folder} ends its answers with other tokens than {first.folder}: ask one at a time.")
        on_top = apply_adapter(base, learnt, own.processor)
        layers[name] = detach(base.model, on_top.attachment, learnt.method, str(learnt.folder))
    model = attach(base, Method.untouched(), first.objective, words.processor)
    model.attachment = attach_all(base.model, layers)
    return Model(model, tokens, first.objective, adapters=dict(zip(adapters, (own for _, own in results))))


def answer_file(
    opened: Model, file: str, system: str | None, room: int, temperature: float, reporter: Reporter
) -> Iterator[dict[str, Any]]:
    """Each line of a file of prompts with its answer, in order; prompts for different adapters share batches.

    Raises:
        DataError: a line is not a prompt.
    """
    asked = read_prompts(file, system, tuple(opened.adapters))
    prompts = [opened.prompt(x.turns, x.adapter) for x in asked]
    for at in reporter.track(range(0, len(asked), TOGETHER), "prompts"):
        some = asked[at : at + TOGETHER]
        chosen = [x.adapter for x in some] if opened.adapters else ()
        written = opened.model.generate(prompts[at : at + TOGETHER], room, temperature, adapters=chosen)
        for x, ids in zip(some, written):
            yield {**x.fields, "answer": opened.tokens.processor.decode(ids).strip()}
