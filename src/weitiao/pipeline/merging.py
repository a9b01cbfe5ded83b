"""Merge one result into its base model, or several results of one base model into one."""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from weitiao.core import hardware
from weitiao.core.command import command
from weitiao.core.errors import InvalidValue, ModelError, RecipeError
from weitiao.core.example import Text, Turn
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.new_folder import in_new_folder, temporary_place
from weitiao.core.plain_form import PlainForm
from weitiao.core.processor import Processor
from weitiao.core.reporter import Reporter
from weitiao.deploy.merging import merge as merge_into_base
from weitiao.deploy.merging.combine import Adapter, MergeMethod, change_of
from weitiao.deploy.merging.combine import CombineOptions as CombineOptions
from weitiao.deploy.merging.generation_files import set_encoding
from weitiao.deploy.merging.merge import (
    SHARD,
    MergeReport,
    Storage,
    check_outputs,
    check_shard_size,
    refuse_unmergeable,
    report_of,
    write_model,
    write_plain,
    write_weights,
)
from weitiao.deploy.merging.probe import PROBE, Probe, answers_alike, probe_of, probe_outputs
from weitiao.deploy.merging.sentence_transformers import add_end_token, write_modules
from weitiao.deploy.readme import write_readme
from weitiao.deploy.verification.recording import Recording
from weitiao.deploy.verification.transformers_form import TransformersForm
from weitiao.deploy.verification.verify import Subject, rows_of_change, verify
from weitiao.model.adapters.module_replacement import is_transposed
from weitiao.model.adapters.peft_format import write_adapter
from weitiao.model.backbone.plain_class import backbone_of, expected_outputs, plain_class, set_labels
from weitiao.model.loading.load import Base
from weitiao.model.loading.sources import resolve_base
from weitiao.model.loading.upcast import is_stored_low
from weitiao.model.loading.weights import stored_dtype
from weitiao.pipeline.adapter_folder import write_adapter_files
from weitiao.pipeline.adapter_registry import read_on_one_base
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.load import BaseAssets, apply_adapter, attach, load_stacked_base, merge_adapter
from weitiao.pipeline.predict import RowPredictor
from weitiao.pipeline.trained import TrainedRun, base_chain, read_trained
from weitiao.pipeline.verification import inputs_of, subject_of


@in_new_folder
def merge_run(
    target: str,
    out: str,
    dtype: str = "auto",
    task: str = "",
    reporter: Reporter | None = None,
    max_rows: int | None = None,
    max_shard_size: str = SHARD,
) -> MergeReport:
    """Merge a run or an adapter into its base model: a folder that plain transformers or sentence-transformers opens.

    Args:
        dtype: what the weights are stored in: fp32, bf16, fp16, or auto: as in the base.
        task: of a multi-task run, which task.
        max_rows: rows of the Run on which what was written is compared with it.
        max_shard_size: of one file of weights.

    Raises:
        ModelError: it has a head that other libraries do not know, cannot be merged, or the reloaded model gives other
            outputs.
        RecipeError: there is no such dtype or task.
    """
    check_dtype(dtype)
    check_shard_size(max_shard_size)
    reporter = reporter or Reporter(Console(quiet=True))
    storage, precision = storage_of(target, dtype)
    model = open_model(target, precision=precision)
    model = model.for_task(task) if task else model
    folder, architecture = Path(out), model.assets.architecture
    form = model.objective.plain_form(architecture.kind)
    if form is not None and form.obstacle is not None:
        raise ModelError(
            "{target} cannot leave weitiao as one folder: {reason}. Use `{command} predict {target}`.",
            target=target,
            reason=form.obstacle,
            command=command(),
        )
    if form is not None:
        return write_with_head(model, form, folder, storage, reporter, max_rows)
    prompt, ends_turns = example_prompt(model)
    if architecture.kind == "encoder" or architecture.modality == "speech":
        return merge_into_base.merge(model.model, model.tokenizer, folder, storage, prompt, ends_turns)
    written = MergedFolder(folder, storage, max_shard_size, reporter)
    recorded = written.record(model, prompt, max_rows)
    with torch.no_grad():
        model.model.attachment.merge()  # pyright: ignore[reportOptionalCall]
    report = written.write(model, ends_turns)
    del model  # the folder is opened without the model beside it
    return written.verify(recorded, report)


def check_dtype(dtype: str) -> None:
    """Whether there is such a dtype.

    Raises:
        RecipeError: there is none.
    """
    if dtype != "auto" and dtype not in hardware.DTYPES:
        raise RecipeError("dtype: {dtype} is none of: auto, {known}", dtype=dtype, known=", ".join(hardware.DTYPES))


def storage_of(target: str, dtype: str) -> tuple[Storage, str]:
    """(what merged weights are stored in, the precision in which the model is opened for merging).

    A base in 16 bits that is to be stored as it is stays in 16 bits: each weight is changed in fp32 and rounded once. All
    others are opened in fp32, because a change must not be rounded twice.
    """
    trained = read_trained(target)
    if trained is None:
        return Storage(hardware.DTYPES.get(dtype, torch.float32)), "fp32"
    chain = base_chain(trained.base)
    stored = stored_dtype(resolve_base(chain[0].base if chain else trained.base, (chain or (trained,))[0].revision))
    if trained.method.rounds_base and dtype == "auto":
        reason = Message("the base was quantized for training, so it is dequantized and stored in 16 bits; --dtype chooses")
        return Storage(torch.bfloat16, reason), "fp32"
    storage = storage_like(stored, dtype)
    in_place = not (chain or trained.method.rounds_base or trained.method.name == "peft")
    if in_place and storage.dtype == stored and stored in (torch.bfloat16, torch.float16):
        return storage, storage.name
    return storage, "fp32"


def storage_like(stored: torch.dtype | None, dtype: str) -> Storage:
    """What merged weights are stored in; auto: what most of the base's are."""
    if dtype != "auto":
        return Storage(hardware.DTYPES[dtype])
    return Storage(stored or torch.float32, Message("as in the base; --dtype chooses"))


@dataclass
class Recorded:
    """What a tuned model predicts, kept until what was written is compared with it."""

    subject: Subject
    probe: Probe
    recordings: tuple[Recording, ...]
    kind: str
    processor: Processor


@dataclass
class MergedFolder:
    """A merged model of a generative run while it is written: the tuned model is recorded, written, and compared."""

    folder: Path
    storage: Storage
    max_shard_size: str
    reporter: Reporter

    def record(self, model: Model, prompt: Sequence[int], max_rows: int | None) -> Recorded:
        """What the tuned model predicts of its rows, and its base of the first of them.

        Raises:
            ModelError: the method cannot be merged.
        """
        refuse_unmergeable(model.model)
        subject = subject_of(model, self.reporter, max_rows)
        recordings = [Recording(temporary_place(self.folder))]
        recordings[0].record(subject.log_probs, subject.rows, self.reporter)
        base = None
        if subject.base is not None:
            base = Recording(temporary_place(self.folder))
            recordings.append(base)
            base.record(subject.base, rows_of_change(subject.rows), self.reporter)
        subject = replace(subject, log_probs=recordings[0], base=base)
        is_fp32 = not is_stored_low(model.torch_model)
        probe = probe_of(model.model, model.tokenizer, prompt) if is_fp32 else Probe(torch.empty(0), prompt)
        assets = model.assets
        return Recorded(subject, probe, tuple(recordings), assets.architecture.kind, assets.processor)

    def write(self, model: Model, ends_turns: bool) -> MergeReport:
        """The merged model, whose memory may be freed afterwards."""
        return write_weights(model.model, model.tokenizer, self.folder, self.storage, ends_turns, self.max_shard_size)

    def verify(self, recorded: Recorded, report: MergeReport) -> MergeReport:
        """Open the folder with plain transformers and compare; the figures are written beside it.

        Raises:
            ModelError: it is not the tuned model, or does not stop.
        """
        gc.collect()
        form = TransformersForm.open(self.folder)
        try:
            probe = recorded.probe
            same = None
            if probe.prompt:
                same = answers_alike(form.model, probe, recorded.processor, self.folder, recorded.kind)
            verification = verify(recorded.subject, form, str(self.folder), track=self.reporter.track)
            verification.write(self.folder)
            verification.check()
        finally:
            form.close()
            for x in recorded.recordings:
                x.close()
        gap = verification.fidelity.max_logit_difference
        compared = {"verification": verification, "gap": gap, "same_top_token": verification.fidelity.agreement.value}
        return replace(report, same_answer=same if probe.answer is not None else None, **compared)


def example_prompt(model: Model) -> tuple[list[int], bool]:
    """(a prompt as the model's users write it, or nothing; whether answers end as the chat template's turns do)."""
    is_chat = model.objective.traits.example_type is not Text and model.assets.architecture.kind == "decoder"
    if not is_chat or model.assets.processor.template is None:
        return [], False
    try:
        return model.assets.processor.prompt((Turn("user", "Hi."),)), True
    except InvalidValue:  # a template that wants other turns
        return [], True


def write_with_head(
    model: Model, form: PlainForm, folder: Path, storage: Storage, reporter: Reporter, max_rows: int | None = None
) -> MergeReport:
    """Merge a run whose objective has a head, or one vector for a text, and write the form that other libraries know.

    Raises:
        ModelError: transformers has no such class of this family, or what was written gives other outputs.
    """
    refuse_unmergeable(model.model)
    torch_model, heads, tokenizer = model.torch_model, model.model.heads, model.tokenizer
    limit = RowPredictor.make(model).max_length
    with torch.no_grad():
        rows = [torch.tensor([x], device=torch_model.device) for x in inputs_of(model, reporter, max_rows, limit)]
        tuned = [(x, expected_outputs(torch_model, form, heads, x)) for x in rows]
        model.model.attachment.merge()  # pyright: ignore[reportOptionalCall]
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
    report = write_plain(plain, tokenizer, folder, form, heads, expected, ids, storage, tuned)
    if form.pooling is not None:
        write_modules(folder, form, heads, torch_model.config.get_text_config().hidden_size, limit, storage.dtype)
    write_readme(folder, form, model.objective.name)
    return report


@in_new_folder
def merge_several(
    targets: Sequence[str],
    out: str,
    reporter: Reporter,
    method: MergeMethod,
    dtype: str = "auto",
    max_rows: int | None = None,
    max_shard_size: str = SHARD,
) -> MergeReport:
    """Merge several results of one base model: a PEFT adapter where that is exact, otherwise a merged model.

    Args:
        method: with its options; they are printed.
        dtype: of a merged model, as in `merge_run`.
        max_rows: rows of the first Run on which what was written is compared with the merge in memory.
        max_shard_size: of one file of a merged model's weights.

    Raises:
        RecipeError: an option is impossible.
        ModelError: their base models differ, one cannot be merged, or what was written gives other outputs.
    """
    check_dtype(dtype)
    check_shard_size(max_shard_size)
    folder = Path(out)
    results = read_on_one_base(targets)
    first, assets = results[0]
    terms = ", ".join(f"{weight:g} x {target}" for weight, target in zip(method.weights, targets))
    reporter.console.print(f"{method.message}: {terms}", soft_wrap=True, markup=False)
    base = load_stacked_base(
        assets.folder, assets.base_chain, Method.untouched(), torch.float32, hardware.device(), assets.processor
    )
    vectors, adapters = task_vectors(base, [trained for trained, _ in results], assets, reporter)
    adapter, form = method.as_adapter(adapters)
    add_change(base, method, vectors, adapter)
    attached = attach(base, Method.untouched(), first.objective, assets.processor)
    merged = Model(attached, assets, first.objective, first.recipe, training_columns=first.columns)
    if len({str(x.tokenizer.chat_template) for _, x in results}) > 1:
        form = Message("{form}; chat templates differ, and that of {first} is used", form=form, first=targets[0])
    if adapter is None:
        written = MergedFolder(folder, storage_like(stored_dtype(assets.folder), dtype), max_shard_size, reporter)
        report = write_merged(merged, written, max_rows)
    else:
        probe = probe_of(merged.model, assets.tokenizer, example_prompt(merged)[0])
        write_adapter(*adapter, folder, first.base)
        write_adapter_files(merged.model, assets, first.objective, folder, with_template=bool(first.template))
        reloaded = open_model(out, "fp32").torch_model
        got = probe_outputs(reloaded, assets.tokenizer, assets.architecture)
        check_outputs(folder, probe.outputs, got)
        report = report_of(folder, probe.outputs, got, Storage())
    record = {**asdict(method), "results": [{"folder": str(x.folder), "identity": x.identity} for x, _ in results]}
    write_text(folder / "merge.json", json.dumps(record, indent=1) + "\n")
    return replace(report, form=form)


def add_change(
    base: Base, method: MergeMethod, vectors: Sequence[dict[str, torch.Tensor]], adapter: Adapter | None
) -> None:
    """Add the merged change to the base's weights: of svd, what its LoRA holds."""
    parameters = dict(base.model.named_parameters())
    from_lora = adapter is not None and method.name == "svd"
    changes = change_of(adapter) if from_lora and adapter is not None else method.combine(vectors)
    for name, change in changes.items():
        weight = parameters[name].data
        layer = base.model.get_submodule(name.rpartition(".")[0])
        weight.add_((change.T if from_lora and is_transposed(layer) else change).to(weight.device))


def write_merged(merged: Model, written: MergedFolder, max_rows: int | None) -> MergeReport:
    """Write a model that is merged in memory, and compare what was written with it."""
    prompt, ends_turns = example_prompt(merged)
    if merged.assets.architecture.kind == "encoder":
        probe = probe_of(merged.model, merged.tokenizer, prompt)
        return write_model(merged.model, merged.tokenizer, written.folder, probe, written.storage, ends_turns)
    recorded = written.record(merged, prompt, max_rows)
    return written.verify(recorded, written.write(merged, ends_turns))


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
