"""Make a tuned model smaller, and measure what that costs: size, speed and quality of the merged model and of the result.

merge into a temporary folder -> calibrate -> write the compressed folder -> (heal) -> open both -> compare -> report
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from torch import Tensor

from weitiao.core import hardware
from weitiao.core.compressor import CommandCompressor, Compression, Compressor, Subject, WeightCompressor
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.files import write_text
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.new_folder import in_new_folder, temporary_place
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find, nearest
from weitiao.core.reporter import Reporter
from weitiao.deploy.compression.report import MEASURED, CompressionReport, Measurement
from weitiao.deploy.compression.rewrite import Sizes, read_subject, rewrite, sizes_of, zero_masks
from weitiao.deploy.verification.fidelity import AnswerRow, compare
from weitiao.model.loading.load import load_architecture, load_base
from weitiao.model.profiling.inference_speed import TURNS, InferenceSpeed, measure_speed
from weitiao.pipeline.compression_rows import answer_rows, calibration_rows, log_probs
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.load import attach
from weitiao.pipeline.merging import merge_run
from weitiao.pipeline.train import train
from weitiao.pipeline.trained import read_trained

REFUSED: dict[str, Message] = {
    "dynamic_int8": Message(
        "method dynamic_int8 (activations rounded with one scale for a whole tensor) is not offered: measured on SmolLM2, "
        "only 48 % of the most probable tokens stay the same, and one user's row changes another's answer. int8 rounds "
        "weights only"
    ),
}
ENOUGH = 2000  # answer tokens to compare


@dataclass(frozen=True)
class CompressionOptions:
    """What is measured, and on what."""

    data: Source | None = None
    """Rows to measure on, and to calibrate on where there is no Run; None: the Run's own."""
    heal: int = 0
    """Steps of fine-tuning after pruning."""
    dtype: str = "auto"
    """Of weights that keep their form; auto: bf16 where the merged model is in fp32 and others get fewer bits."""
    limit: int | None = None
    """At most this many rows for metrics that generate text."""
    precision: str = ""
    """That both models are measured in; "": auto."""


def compressor_of(method: str, settings: Mapping[str, Any]) -> Compressor:
    """A technique with its settings.

    Raises:
        RecipeError: there is none of this name, or it has no such setting.
    """
    if method in REFUSED:
        raise RecipeError(REFUSED[method])
    cls = find(Compressor, method)
    try:
        return create(Compressor, method, **settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or method
        if first["type"] != "extra_forbidden":
            raise RecipeError(
                "method {method}: {key}={value}: {reason}",
                method=method,
                key=key,
                value=first["input"],
                reason=first["msg"],
            ) from None
        known = ", ".join(cls.model_fields) or "-"
        raise RecipeError(
            "method {method} has no setting {key!r}.{hint} There are: {known}",
            method=method,
            key=key,
            hint=nearest(key, list(cls.model_fields)),
            known=known,
        ) from None


@in_new_folder
def compress(
    target: str, out: str, compressor: Compressor, reporter: Reporter, options: CompressionOptions | None = None
) -> CompressionReport:
    """Compress a Run or a merged model, open the result and measure it.

    Args:
        target: a Run (or an adapter), which is merged first, or a folder of a merged model. It is not changed.

    Raises:
        ModelError: the technique does not work on it, or the result does not open.
        RecipeError: an option is impossible.
    """
    folder, options = Path(out), options or CompressionOptions()
    if options.heal and compressor.result != "pruned":
        raise RecipeError("--heal trains a pruned model on: {method} does not prune", method=compressor.name)
    if isinstance(compressor, CommandCompressor):
        return write_command(target, folder, compressor, reporter, options)
    assert isinstance(compressor, WeightCompressor)
    with merged(target, folder, reporter) as (source, tuned):
        if options.heal and (read_trained(target) is None or not tuned.objective.traits.generative):
            raise RecipeError("--heal needs a Run that generates text: its rows are trained on again")
        subject = read_merged(source, tuned, compressor, options, reporter)
        before, after, compression = write_compressed(target, subject, folder, compressor, options, reporter)
        report = measure_both(source, folder, tuned, (before, after), options, reporter)
        method = compressor.as_recipe() | ({"heal": options.heal} if options.heal else {})
    report = replace(report, method=method, source=target, notes=[*compression.notes, *report.notes])
    report.write()
    return report


@contextmanager
def merged(target: str, out: Path, reporter: Reporter) -> Iterator[tuple[Path, Model]]:
    """Inside: a folder of the merged model, and the tuned model with its objective, rows and templates.

    Raises:
        ModelError: the target is neither a Run nor a folder of a model.
    """
    if read_trained(target) is None:
        if not (Path(target) / "config.json").is_file():
            raise ModelError("{target} is neither a Run nor a folder of a merged model", target=target)
        yield Path(target), open_model(target, "fp32")
        return
    with tempfile.TemporaryDirectory(dir=temporary_place(out), prefix=f".{out.name}.") as place:
        folder = Path(place) / "merged"
        with reporter.spin(Message("merging")):
            merge_run(target, str(folder))
            tuned = open_model(target, "fp32")
        yield folder, tuned


def read_merged(
    source: Path, tuned: Model, compressor: Compressor, options: CompressionOptions, reporter: Reporter
) -> Subject:
    """The merged model as a technique sees it.

    Raises:
        ModelError: the technique is for decoders only, or there are no rows to calibrate on.
    """
    architecture = tuned.assets.architecture
    if compressor.decoders_only and architecture.kind != "decoder":
        raise ModelError(
            "method {method} is for decoders; {family} is none. int8, int4, nf4 and magnitude work on it",
            method=compressor.name,
            family=architecture.model_type,
        )
    rows: Sequence[Sequence[int]] = ()
    if compressor.reads_rows:
        count: int = compressor.model_dump()["rows"]
        rows = calibration_rows(tuned, options.data, count, reporter)
        if not rows:
            raise ModelError(
                "method {method} is calibrated on rows, and {target} is no Run that has some: name a file with --data",
                method=compressor.name,
                target=source,
            )
    if options.dtype != "auto" and options.dtype not in hardware.DTYPES:
        known = ", ".join(hardware.DTYPES)
        raise RecipeError("dtype: {dtype} is none of: auto, {known}", dtype=options.dtype, known=known)
    subject = read_subject(source, architecture, rows, reporter.track, hardware.DTYPES.get(options.dtype))
    if options.dtype == "auto" and compressor.result == "quantized" and subject.dtype == torch.float32:
        return replace(subject, dtype=torch.bfloat16)
    return subject


def write_compressed(
    target: str,
    subject: Subject,
    folder: Path,
    compressor: WeightCompressor,
    options: CompressionOptions,
    reporter: Reporter,
) -> tuple[Sizes, Sizes, Compression]:
    """(sizes before and after, what was done)."""
    compression = compressor.plan(subject)
    if not options.heal:
        return *rewrite(subject, folder, compression), compression
    with tempfile.TemporaryDirectory(dir=temporary_place(folder)) as place:
        before, _ = rewrite(subject, Path(place) / "pruned", compression)
        after, note = heal(target, Path(place), folder, options.heal, reporter)
    return before, after, replace(compression, notes=[*compression.notes, note])


def heal(target: str, place: Path, folder: Path, steps: int, reporter: Reporter) -> tuple[Sizes, Message]:
    """Train a LoRA on the Run's own rows on top of the pruned model, merge it, and set what was pruned to 0 again."""
    trained = read_trained(target)
    assert trained is not None and trained.recipe is not None
    recipe: Recipe = trained.recipe
    schedule = recipe.train.model_copy(
        update={"steps": steps, "learning_rate": "auto", "evaluate_every": 0, "patience": None}
    )
    measured = recipe.evaluate.model_copy(update={"metrics": ("loss",), "samples": 0})
    changed = {
        "base": str(place / "pruned"),
        "revision": None,
        "init_from": None,
        "method": create(Method, "lora"),
        "train": schedule,
        "evaluate": measured,
        "out": str(place / "run"),
    }
    with reporter.spin(Message("healing: {steps} steps", steps=steps)):
        run = train(recipe.model_copy(update=changed), Reporter(Console(quiet=True)))
        merge_run(str(run.folder), str(place / "healed"))
    architecture = load_architecture(place / "healed")
    healed = read_subject(place / "healed", architecture)
    masks = zero_masks(place / "pruned", healed.linears)

    def change(name: str, tensor: Tensor) -> dict[str, Tensor]:
        return {name: tensor.masked_fill(masks[name], 0) if name in masks else tensor}

    _, after = rewrite(healed, folder, Compression(change))
    return after, Message(
        "healed: a LoRA of {steps} steps on the Run's own rows, merged; weights that were pruned are 0 again", steps=steps
    )


# -- measuring --------------------------------------------------------------------------------------------------------


def open_form(folder: Path, tuned: Model, precision: str) -> Model:
    """The model in a folder with the tuned model's templates, rows and heads.

    Raises:
        ModelError: it does not open.
    """
    assets = replace(tuned.assets, folder=folder, base_chain=())
    base = load_base(folder, hardware.precision(precision or "auto")[0], hardware.device())
    model = attach(base, Method.untouched(), tuned.objective, assets.processor)
    model.heads.load_state_dict(tuned.model.heads.state_dict())
    return replace(tuned, model=model, assets=assets)


def measure_both(
    source: Path,
    folder: Path,
    tuned: Model,
    sizes: tuple[Sizes, Sizes],
    options: CompressionOptions,
    reporter: Reporter,
) -> CompressionReport:
    """The merged model and the compressed one, side by side."""
    precision = options.precision or "auto"
    with reporter.spin(Message("opening both models")):
        reference = open_form(source, tuned, "fp32")
        same = hardware.precision(precision)[0] == torch.float32
        before = reference if same else open_form(source, tuned, precision)
        after = open_form(folder, tuned, precision)
    generates = tuned.assets.architecture.kind == "decoder"
    with reporter.spin(Message("measuring speed")):
        speeds = measure_speed([before.model, after.model], generates)
    rows = answer_rows(reference, options.data, ENOUGH, reporter) if generates and tuned.objective.traits.generative else []
    described = Message("{n:,} held-out rows", n=len(rows)) if rows else Message("no rows with answers")
    forms = []
    for model, size, speed in zip((before, after), sizes, speeds):
        forms.append(measured(model, size, speed, reference, rows, options, reporter))
    return CompressionReport(folder, {}, "", *forms, rows=described, turns=TURNS)


def measured(
    model: Model,
    sizes: Sizes,
    speed: InferenceSpeed,
    reference: Model,
    rows: Sequence[AnswerRow],
    options: CompressionOptions,
    reporter: Reporter,
) -> Measurement:
    """One form's figures."""
    fidelity = None
    if rows:
        expected = log_probs(reference.model)
        got = expected if model is reference else log_probs(model.model)
        fidelity = compare(expected, got, rows, track=reporter.track)
    has_rows = options.data is not None or (model.recipe is not None and has_held_out(model.recipe))
    scores = evaluate(model, reporter, options.data, limit=options.limit) if has_rows else {}
    dtype = hardware.precision(options.precision or "auto")[0]
    precision = next(name for name, x in hardware.DTYPES.items() if x == dtype)
    memory = sum(x.numel() * x.element_size() for x in model.torch_model.parameters())
    figures = (speed.prefill, speed.decode, speed.decode_batch)
    return Measurement(sizes, memory, precision, *figures, fidelity, scores)


def has_held_out(recipe: Recipe) -> bool:
    return bool(recipe.evaluate.data or recipe.validation)


# -- another environment ----------------------------------------------------------------------------------------------


def write_command(
    target: str, folder: Path, compressor: CommandCompressor, reporter: Reporter, options: CompressionOptions
) -> CompressionReport:
    """The merged model, rows to calibrate on and a script for an environment of its own; nothing is compressed here."""
    with merged(target, folder, reporter) as (source, tuned):
        subject = read_merged(source, tuned, compressor, options, reporter)
        files = compressor.files(subject, "merged", "compressed")
        rewrite(subject, folder / "merged", Compression(lambda name, tensor: {name: tensor}))
        for name, text in files.items():
            write_text(folder / name, text)
    note = Message("nothing is compressed yet: {folder}/README.md has the commands", folder=folder)
    return CompressionReport(folder, compressor.as_recipe(), target, notes=[note])


def measure_compressed(
    target: str, folder: str, reporter: Reporter, options: CompressionOptions | None = None
) -> CompressionReport:
    """Compare a folder that was compressed elsewhere with the merged model that it was made of.

    Args:
        target: the Run, or the merged model.

    Raises:
        ModelError: the folder does not open.
    """
    path, options = Path(folder), options or CompressionOptions()
    with merged(target, path, reporter) as (source, tuned):
        linears = read_subject(source, tuned.assets.architecture).linears
        sizes = (sizes_of(source, linears), sizes_of(path, linears))
        report = measure_both(source, path, tuned, sizes, options, reporter)
    report = replace(report, method={"name": MEASURED}, source=target)
    report.write()
    return report
