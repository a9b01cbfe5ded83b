"""The Python API: the functions that `from weitiao import ...` gives. torch is imported when one of them is called."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, as_recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.run_table import list_runs as list_runs
from weitiao.core.run_text import print_result

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from weitiao.core.callback import Callback
    from weitiao.core.finding import Finding
    from weitiao.core.scores import Scores
    from weitiao.multirun.compare_methods import Compared
    from weitiao.multirun.stages import Stage
    from weitiao.pipeline.compare import Comparison
    from weitiao.pipeline.compression import CompressionReport
    from weitiao.pipeline.exporting import ExportReport
    from weitiao.pipeline.inference import Model
    from weitiao.pipeline.merging import CombineOptions, MergeReport
    from weitiao.pipeline.verification import EndpointReport, PredictionReport, VerificationReport


def train(
    recipe: "Recipe | str | Path | Mapping[str, Any]",
    *,
    callbacks: "Sequence[Callback]" = (),
    overwrite: bool = False,
    allow: Collection[str] = (),
    verbose: bool | int = True,
) -> "Run":
    """Fine-tune, and measure before and after.

    Args:
        recipe: a Recipe, the path of a recipe file, or its keys as a dict. `data` may be a path, a list of dicts, a pandas
            or polars frame or a `datasets.Dataset`; rows in memory are written into the Run.
        callbacks: each one's `on_event(run, event)` is called for every event of the run.
        overwrite: move an older run in the same folder out of the way.
        allow: findings of the preflight check to ignore, by name.
        verbose: False prints nothing, 2 prints every decision with its reason.

    Returns:
        The finished Run; of a recipe with stages, the last one's.

    Raises:
        WeitiaoError: the message says what is wrong and what would be right.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.multirun.stages import stages_of
    from weitiao.pipeline import train as pipeline

    if stages := stages_of(recipe):
        return train_stages(stages, callbacks=callbacks, allow=allow, verbose=verbose)[-1]
    run = pipeline.train(as_recipe(recipe), reporter, overwrite=overwrite, allowed=allow, callbacks=callbacks)
    print_result(run, reporter.console)
    return run


def train_stages(
    stages: "list[Stage]", *, callbacks: "Sequence[Callback]" = (), allow: Collection[str] = (), verbose: bool | int = True
) -> "list[Run]":
    """Train the stages of a recipe one after another; finished ones are not trained again."""
    from weitiao.multirun.stages import run_stages

    reporter = _reporter(verbose)
    runs = run_stages(stages, reporter, reporter.say, allowed=allow, callbacks=callbacks)
    for run in runs:
        reporter.say(str(run.folder), "bold")
        print_result(run, reporter.console)
    return runs


def resume(
    run: "Run | str | Path",
    *,
    callbacks: "Sequence[Callback]" = (),
    allow: Collection[str] = (),
    verbose: bool | int = True,
) -> "Run":
    """Go on with an interrupted run; on a CPU the result is bit-exactly that of an uninterrupted one.

    Raises:
        RunError: there is no such run, or it is finished.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.pipeline import train as pipeline

    finished = pipeline.resume(_path(run), reporter, allow, callbacks)
    print_result(finished, reporter.console)
    return finished


def check(
    recipe: "Recipe | str | Path | Mapping | list[Stage]", *, allow: Collection[str] = (), verbose: bool | int = False
) -> "list[Finding]":
    """The preflight check alone, of each stage: data, template, lengths, leaks, three training steps. Nothing is kept.

    Raises:
        CheckError: there are errors that are not allowed; `error.findings` holds all findings.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.multirun.stages import check_all

    return check_all(recipe, reporter, allow)


def load(
    target: "str | Path | Run",
    *,
    adapters: "Mapping[str, str | Path | Run] | None" = None,
    precision: str = "auto",
    overlong: str = "auto",
) -> "Model":
    """A model to use: generate, predict, encode.

    Args:
        target: a Run or its folder, a PEFT adapter folder, or any base model.
        adapters: several, on the base model `target`: a name for each -> its Run or PEFT folder (more: Model.add_adapter).
        precision: bf16, fp32, fp16, or auto: as it was trained.
        overlong: of conversations that are too long: error; drop_turns: exchanges are left out; auto: as it was trained.

    Raises:
        ModelError, RunError: it is none of these, or the run has no result yet.
    """
    _import_pipeline()
    from weitiao.pipeline import inference

    precision, named = "" if precision == "auto" else precision, {name: _path(x) for name, x in (adapters or {}).items()}
    return inference.open_many(_path(target), named, precision, overlong)


def evaluate(
    target: "str | Path | Run | Model",
    data: Any = None,
    metrics: Sequence[str] = (),
    *,
    limit: int | None = None,
    task: str = "",
    max_bad_fraction: float | None = None,
    exams: Sequence[str] = (),
    items: str | Path | None = None,
    forgetting: bool = False,
    verbose: bool | int = False,
) -> "Scores":
    """Measure a model; every score has its n and its 95 % interval. `.classes` has what is behind predicted classes.

    Args:
        data: a path, a source as in a recipe ({"path": ..., "columns": ...}) or rows in memory; None: the run's held-out
            rows. Columns, encoding and format are those that the run was trained with, unless the source has its own.
        metrics, limit: names, (): those of the recipe, or what fits; at most so many rows for those that generate text.
        task: of a multi-task run, the task that `data` belongs to.
        max_bad_fraction: more unusable rows of `data` than this are an error; None: as the run's recipe says.
        exams, forgetting: exams by name, and what a run has lost (`.forgetting`); without `data` and `metrics`, only these.

    Raises:
        RunError: there are no held-out rows, and no data.
        DataError: too many rows of `data` cannot be measured.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.core.temporary_source import as_source
    from weitiao.pipeline.evaluate import evaluate as measure
    from weitiao.pipeline.inference import Model
    from weitiao.pipeline.trained import warn_unfinished

    subject = target if isinstance(target, Model) else _path(target)
    if isinstance(subject, str):
        warn_unfinished([subject], reporter)
    with as_source(data, task) as rows:
        return measure(subject, reporter, rows, metrics, limit, task, max_bad_fraction, exams, items, forgetting)


def merge(
    targets: "str | Path | Run | Sequence[str | Path | Run]",
    out: str | Path,
    *,
    method: str = "linear",
    dtype: str = "auto",
    task: str = "",
    max_rows: int | None = None,
    max_shard_size: str = "5GB",
    verbose: bool | int = False,
    **combine: "Unpack[CombineOptions]",
) -> "MergeReport":
    """Merge a run into its base model, or several runs of one base model into one; what was written is opened again and
    compared on the run's own answers.

    Args:
        out: a new folder. Of one run: a model that plain transformers or sentence-transformers opens. Of several: a LoRA
            in PEFT's format where that is exact (linear, task_arithmetic) or asked for (svd), otherwise a merged model.
        method: of several: linear, task_arithmetic, ties, dare_linear, dare_ties or svd.
        dtype: what a merged model is stored in: fp32, bf16, fp16; auto: as the base.
        task: of a multi-task run, which task.
        max_rows: rows that are compared; None: until about 2,000 answer tokens, within a bound of time.
        max_shard_size: of one file of a merged model's weights: "500MB", "5GB".
        combine: of several: `weights`, one for each (default 1); `density`, the fraction that ties and dare keep (default
            0.2); `seed` of what dare drops (default 0); `rank` of the LoRA that svd writes (default: the highest).

    Raises:
        ModelError: one cannot be merged, their base models differ, or what was written is not the tuned model.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.pipeline import merging
    from weitiao.pipeline.trained import warn_unfinished

    paths = [_path(x) for x in (targets if isinstance(targets, (list, tuple)) else [targets])]  # pyright: ignore[reportArgumentType]
    warn_unfinished(paths, reporter)
    if len(paths) == 1 and method == "linear" and not any(combine.values()):
        with reporter.spin(Message("merging, reloading and comparing")):
            return merging.merge_run(paths[0], str(out), dtype, task, reporter, max_rows, max_shard_size)
    chosen = merging.MergeMethod.make(method, len(paths), **combine)
    return merging.merge_several(paths, str(out), reporter, chosen, dtype, max_rows, max_shard_size)


def verify(
    target: "str | Path | Run",
    form: str | Path,
    *,
    max_rows: int | None = None,
    model: str = "",
    key: str = "",
    verbose: bool | int = False,
) -> "VerificationReport | PredictionReport | EndpointReport":
    """Compare what is served with the run it was made of, on the run's own answers; `report.check()` raises where a bar
    was missed.

    Args:
        form: a merged folder, an adapter folder, an exported file, or the address of an OpenAI-compatible server.
        max_rows: rows that are compared; None: until about 2,000 answer tokens.
        model: of a server: the name of the model.
        key: of a server: its API key.

    Raises:
        ModelError: nothing here opens it; a run with a head (classes, tags, vectors) is compared as a merged folder only.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.pipeline import verification

    source = str(form)
    if source.startswith(("http://", "https://")):
        return verification.verify_endpoint(_path(target), source, reporter, model, key, max_rows)
    return verification.verify_run(_path(target), source, reporter, max_rows)


def export(
    target: "str | Path | Run",
    out: str | Path,
    *,
    format: str,
    task: str = "",
    max_rows: int | None = None,
    verbose: bool | int = False,
    **settings: Any,
) -> "ExportReport":
    """Write a model for another program, open it with that program's engine and compare it with what was trained.

    Args:
        target: a Run or its folder, a PEFT adapter folder, a merged folder or any base model.
        out: a new folder.
        format: gguf, onnx, ollama, peft, vllm or tensorrt_llm.
        task: of a multi-task run, which task.
        max_rows: rows of the Run that are compared; None: until about 2,000 answer tokens.
        settings: of the format: type="q8_0", adapter=True ...

    Raises:
        RecipeError: there is no such format or setting, or a package is missing.
        ModelError: the other program cannot have the model, or what was written is not the tuned model.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.pipeline import exporting
    from weitiao.pipeline.trained import warn_unfinished

    warn_unfinished([_path(target)], reporter)
    return exporting.export(_path(target), str(out), format, reporter, settings, task, max_rows)


def compress(
    target: "str | Path | Run",
    out: str | Path,
    *,
    method: str = "int8",
    settings: Mapping[str, Any] | None = None,
    heal: int = 0,
    data: Any = None,
    measure: bool = False,
    verbose: bool | int = False,
    **options: Any,
) -> "CompressionReport":
    """Make a tuned model smaller, and measure size, speed and quality before and after.

    Args:
        target: a Run, which is merged first, or a folder of a merged model.
        out: a new folder; with `measure`, one that was compressed elsewhere.
        method: int8, int4, nf4, magnitude, wanda, drop_layers, gptq or llm_compressor.
        settings: of the method: {"sparsity": 0.5}.
        heal: after pruning: steps of fine-tuning on the Run's own rows.
        data: rows to measure on, as in `evaluate`; None: the Run's held-out rows.
        options: limit: at most this many rows for metrics that generate text; precision: bf16 or fp32, that both models
            are measured in; dtype: of weights that keep their form.

    Raises:
        RecipeError: there is no such method or setting.
        ModelError: the method does not work on this model.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.core.temporary_source import as_source
    from weitiao.core.third_party import muted
    from weitiao.pipeline import compression
    from weitiao.pipeline.trained import warn_unfinished

    warn_unfinished([_path(target)], reporter)
    options["precision"] = "" if options.get("precision", "auto") == "auto" else options["precision"]
    with as_source(data, "") as source, muted(not reporter.verbose):
        chosen = compression.CompressionOptions(data=source, heal=heal, **options)
        if measure:
            return compression.measure_compressed(_path(target), str(out), reporter, chosen)
        technique = compression.compressor_of(method, settings or {})
        return compression.compress(_path(target), str(out), technique, reporter, chosen)


def compare_methods(
    recipe: "Recipe | str | Path | Mapping[str, Any]", methods: Sequence[str] = (), *, verbose: bool | int = True
) -> "list[Compared]":
    """Train one recipe with each method, and compare quality, trained weights, memory and speed; the best comes first.

    Args:
        methods: names; (): every method.
    """
    from weitiao.multirun import compare_methods as comparing

    return comparing.compare_methods(as_recipe(recipe), methods, _reporter(verbose).say)


def compare(
    models: "Sequence[str | Path | Run]",
    *,
    data: Any = None,
    metrics: Sequence[str] = (),
    exams: Sequence[str] = (),
    require: Sequence[str] = (),
    no_worse: Sequence[str] = (),
    by_interval: bool = False,
    limit: int | None = None,
    out: str | Path = "",
    verbose: bool | int = True,
    **options: str,
) -> "Comparison":
    """Models on the same rows, each against the first, by paired tests; the record folder has report.html.

    Args:
        data: as in `evaluate`; None: the held-out rows of the first run that has any.
        require, no_worse: gates, "f1>=0.82" and "accuracy:1%"; `passed` of the result is False where one does not hold.
        limit: at most this many rows for metrics that generate text.
        out: the folder of the record; "": comparisons/A-B.
        options: task, of the rows of `data`; html, another place for the report; judge, judge_model.
    """
    reporter = _reporter(verbose)
    _import_pipeline(reporter)
    from weitiao.core.temporary_source import as_source, is_rows
    from weitiao.pipeline import compare as comparing

    names, gates, measured = [_path(x) for x in models], (require, no_worse, by_interval), (tuple(metrics), tuple(exams))
    with as_source(data, options.pop("task", "")) as rows:
        more = {"in_memory": is_rows(data), **options}
        chosen = comparing.CompareOptions(names, rows, *measured, limit, *gates, str(out), **more)
        return comparing.compare(chosen, reporter)


def _import_pipeline(reporter: "Reporter | None" = None) -> None:
    """Import torch, transformers and the pipeline, which takes seconds; missing CPU kernels are compiled meanwhile."""
    with reporter.spin(Message("loading torch and transformers")) if reporter else nullcontext():
        from weitiao.pipeline.prebuild import compile_in_background

        compile_in_background()
        from weitiao.pipeline import train  # noqa: F401


def _path(target: "str | Path | Run") -> str:
    return str(getattr(target, "folder", target))


def _reporter(verbose: bool | int) -> "Reporter":
    return Reporter(Console(quiet=not verbose, highlight=False), verbose=int(verbose) > 1)
