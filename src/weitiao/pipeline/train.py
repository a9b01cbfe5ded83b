"""The whole pipeline on one page: from a recipe to a finished Run.

open the Run -> assemble (read, encode, load, resolve) -> preflight -> evaluate -> train -> evaluate -> report
"""

import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from rich.console import Console

from weitiao.core import events, hardware
from weitiao.core.callback import Callback
from weitiao.core.command import command
from weitiao.core.errors import INTERRUPTED, Interrupted, RunError, message_of
from weitiao.core.finding import Decision, Finding
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe, with_rows_in
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.run_status import now, read_status
from weitiao.core.third_party import muted
from weitiao.core.trainable_model import as_base_model
from weitiao.data.prepare import row_describer
from weitiao.evaluate.measure import requested_metrics
from weitiao.evaluate.record import measure_and_record
from weitiao.evaluate.report.run_report import write_report
from weitiao.evaluate.thresholds import calibrate_thresholds
from weitiao.model.backbone.activation_cache import delete_cache
from weitiao.model.profiling.throughput import ThroughputMeter
from weitiao.pipeline import announce
from weitiao.pipeline.adapter_folder import write_adapter_folder
from weitiao.pipeline.assemble import TrainingSetup, assemble, cache_activations, make_scorer, preflight
from weitiao.pipeline.exams import record_exams
from weitiao.pipeline.forgetting import record_after, record_before, training_of
from weitiao.pipeline.prompted import compare_with_prompted_base, record_prompted_base
from weitiao.pipeline.retrieval_baselines import compare_with_baselines
from weitiao.pipeline.trained import base_fingerprint
from weitiao.train.checkpoints.best import restore_best
from weitiao.train.checkpoints.checkpoint import check_identity
from weitiao.train.checkpoints.resume import has_checkpoint, resume_from
from weitiao.train.distributed import Distributed
from weitiao.train.loop import train as train_loop
from weitiao.train.progress import Progress
from weitiao.train.signals import catch_signals


def train(
    recipe: Recipe,
    reporter: Reporter,
    again: bool = False,
    overwrite: bool = False,
    allowed: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Fine-tune, and measure before and after.

    Args:
        again: resume an interrupted run.
        overwrite: move an older run in the same folder out of the way.
        allowed: findings of the preflight check that do not refuse the run.
        callbacks: are told every event of the run.

    Raises:
        WeitiaoError: the message says what is wrong and what would be right.
    """
    distributed = Distributed(hardware.device())
    run = distributed.main_first(
        lambda is_main: Run.create(recipe, overwrite) if is_main and not again else Run.open(recipe.out)
    )
    run.can_write = distributed.is_main
    run.callbacks += callbacks
    recipe = with_rows_in(recipe, run.folder)
    if not distributed.is_main:
        reporter = Reporter(Console(quiet=True))
    announce.start(recipe, run, reporter)
    with run.locked(), muted(not reporter.verbose):
        try:
            run_training(run, recipe, distributed, reporter, again, allowed)
        except KeyboardInterrupt as interrupt:
            log_end(run, "interrupted")
            code = next(iter(interrupt.args), INTERRUPTED)  # of the second signal; a plain Ctrl-C brings none
            raise Interrupted(
                "stopped ({status}); go on with: {command} train --resume {folder}",
                code,
                status=read_status(run.folder, ended=True).message,
                command=command(),
                folder=run.folder,
            ) from None
        except Exception as error:
            log_end(run, "failed", message_of(error))
            raise
    return run


def run_training(
    run: Run, recipe: Recipe, distributed: Distributed, reporter: Reporter, again: bool, allowed: Collection[str]
) -> None:
    """From the open Run to its report."""
    setup = assemble(run, recipe, distributed, reporter)
    model, data = setup.state.model, setup.data
    resuming = again and has_checkpoint(run, distributed)
    if again and not resuming and (recorded := run.read("resolved.json", {}).get("identity")):
        check_identity(recorded, setup.plan.identity, Message("start over: --overwrite"))
    if not resuming:
        assets = setup.assets
        fingerprint = base_fingerprint(recipe.base, assets.base_chain, assets.folder)
        run.record(identity=setup.plan.identity, base_fingerprint=fingerprint)
        preflight(setup, run, distributed, reporter, allowed)
    announce.plan(setup, reporter)
    with (
        reporter.phase(run, "evaluate_before", Message("measuring the base model")),
        as_base_model(model) as base,  # without the random virtual tokens that a method starts with
    ):
        measure_and_record("before", base, data.objective, data.final, data.evaluate, run, reporter)
        record_exams("before", base, setup.exams, setup.assets.max_length, run, recipe, reporter)
        if distributed.is_main:  # how much is asked follows the clock, so processes must not wait for each other in it
            record_before(base, setup.suites, recipe, run, reporter)
            if setup.suites:
                record_prompted_base(base, data, recipe, run, reporter)
    delete_activations = train_model(setup, run, recipe, distributed, reporter, again, resuming)
    distributed.barrier()
    restore_best(run, model)
    if distributed.is_main:
        finish(setup, run, recipe, reporter)
        delete_activations()


def train_model(
    setup: TrainingSetup,
    run: Run,
    recipe: Recipe,
    distributed: Distributed,
    reporter: Reporter,
    again: bool,
    resuming: bool,
) -> Callable[[], None]:
    """Steps until the end, an early stop or a signal; throughput and memory are logged.

    Args:
        resuming: there is a checkpoint to go on from.

    Returns:
        What deletes the activation cache.
    """
    torch.manual_seed(recipe.seed)
    state, plan, data = setup.state, setup.plan, setup.data
    with reporter.spin(Message("preparing the first step")):
        score = make_scorer(state.model, data, recipe.train.best_metric)  # while it still is the base model
        if again:
            resume_from(run, state, plan, distributed, reporter, resuming)
        describe_row = row_describer(data.encoded.rows, setup.assets.processor)
        fetch, delete_activations = cache_activations(setup, recipe, distributed, run, reporter)
    throughput = ThroughputMeter(state.model, data.objective, setup.loader.__getitem__, distributed.world_size)
    progress = Progress(reporter.console, plan.steps, state.step)
    run.callbacks += [progress, throughput]
    with reporter.phase(run, "train", None, plan.steps), catch_signals() as stop, progress:
        train_loop(state.model, setup.loss_function, fetch, state, plan, run, score, distributed, stop, describe_row)
    with reporter.spin(Message("measuring the throughput")):
        throughput.report(run)
    run.log(events.Memory(round(setup.memory_before_model / 2**20, 1), round(hardware.peak_mb(), 1)))
    return delete_activations


def finish(setup: TrainingSetup, run: Run, recipe: Recipe, reporter: Reporter) -> None:
    """Measure the result, and write adapter, scores and report."""
    state, data = setup.state, setup.data
    with reporter.phase(run, "evaluate_after", Message("measuring the result")):
        reason = write_adapter_folder(state.model, setup.assets, data.objective, recipe, run.folder / "adapter")
        reporter.report(run, *([Decision("adapter", "none", reason)] if reason else []))
        objective = calibrate_thresholds(state.model, data.objective, data.validation, data.final, run, reporter)
        measure_and_record("after", state.model, objective, data.final, data.evaluate, run, reporter)
        record_exams("after", state.model, setup.exams, setup.assets.max_length, run, recipe, reporter)
        training = training_of(recipe, setup.resolved.learning_rate)
        compare_with_prompted_base(run, reporter)
        if data.baselines and data.final is not None:
            names = requested_metrics(data.evaluate, objective, data.final)
            compare_with_baselines(data.baselines, names, data.final, run, reporter)
        record_after(state.model, setup.suites, training, state.best_step or None, run, reporter)
    run.log(events.End("finished", state.step, state.data_step, now()))
    with reporter.phase(run, "report", Message("writing the report")):
        write_report(run)


def log_end(run: Run, outcome: events.Outcome, reason: Message | None = None) -> None:
    """Log how training ended, unless the loop or the guard has done so."""
    last = None
    for event in run.events(events.Step, events.Rollback, events.Resume, events.End):
        last = event
    if not isinstance(last, events.End):
        step, data_step = (last.step, last.data_step) if last else (0, 0)
        run.log(events.End(outcome, step, data_step, now(), reason))


def resume(folder: str, reporter: Reporter, allowed: Collection[str] = (), callbacks: Sequence[Callback] = ()) -> Run:
    """Go on with an interrupted run; on a CPU the result is bit-exactly that of an uninterrupted one.

    Raises:
        RunError: there is no such run, or it is finished.
    """
    run = Run.open(folder)
    if run.is_finished:
        delete_cache(run.folder)
        if not (run.folder / "report.html").exists():  # killed between its last event and its report
            with run.locked():
                write_report(run)
            return run
        raise RunError(
            "{folder} is finished already. See {folder}/report.html. To train its weights further, with a learning rate "
            "schedule of its own: the same recipe with init_from={folder} out=...",
            folder=folder,
        )
    recipe = run.recipe.model_copy(update={"out": str(run.folder)})
    return train(recipe, reporter, again=True, allowed=allowed, callbacks=callbacks)


def check(recipe: Recipe, reporter: Reporter, allowed: Collection[str] = ()) -> list[Finding]:
    """The preflight check alone: everything up to step 1. Nothing is kept.

    Raises:
        CheckError: there is an error that is not allowed.
    """
    with tempfile.TemporaryDirectory() as folder, muted(not reporter.verbose):
        recipe = with_rows_in(recipe.model_copy(update={"out": f"{folder}/run"}), Path(folder, "run"))
        run = Run.create(recipe)
        distributed = Distributed(hardware.device())
        return preflight(assemble(run, recipe, distributed, reporter), run, distributed, reporter, allowed)
