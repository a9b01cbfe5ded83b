"""The whole trip on one page: the only file that knows every station.

open the Run -> read -> split -> encode -> load -> attach -> batch -> train -> evaluate -> report
"""

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from weitiao.core import events, hardware
from weitiao.core.architecture import Architecture
from weitiao.core.batch import Batch
from weitiao.core.callback import Callback
from weitiao.core.command import command
from weitiao.core.errors import INTERRUPTED, Interrupted, RunError, message_of
from weitiao.core.eval_set import EvalSet
from weitiao.core.finding import Decision, Finding, refuse
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import LossFunction, Objective
from weitiao.core.recipe import Recipe, with_rows_in
from weitiao.core.regularizer import regularized
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.run_status import now, read_status
from weitiao.core.score import Score
from weitiao.core.trainable_model import BaseIdentity, TrainableModel, as_base_model, identity_of, trains_untied_embedding
from weitiao.data.audio import load_feature_extractor
from weitiao.data.checks import check_data, unused_tokens
from weitiao.data.encode import Encoded
from weitiao.data.loader import Loader
from weitiao.data.prepare import Encoder, read, read_and_split, report_rows, row_describer
from weitiao.data.template import read_template, tokenizer_identity
from weitiao.data.tokenization import ChatProcessor
from weitiao.evaluate.drift import Drift
from weitiao.evaluate.measure import measure
from weitiao.evaluate.record import measure_and_record
from weitiao.evaluate.report import write_report
from weitiao.evaluate.thresholds import calibrate_thresholds
from weitiao.model.adapters.peft_format import save_adapter
from weitiao.model.backbone.activation_cache import choose, decided, delete_cache, keep
from weitiao.model.backbone.choose import use_reference_implementation
from weitiao.model.layers.gradient_checkpointing import enable_gradient_checkpointing
from weitiao.model.loading.load import load_architecture, load_generation, load_tokenizer
from weitiao.model.loading.sources import resolve_base
from weitiao.model.profiling.throughput import ThroughputMeter
from weitiao.pipeline.trained import TrainedRun, attach, base_chain, base_fingerprint, load_stacked_base, warm_start
from weitiao.plan import resolve
from weitiao.train.checkpoints.best import restore_best
from weitiao.train.checkpoints.resume import has_checkpoint, resume_from
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.loop import train as train_loop
from weitiao.train.preflight import preflight_steps
from weitiao.train.progress import Progress
from weitiao.train.settings import Plan, make_optimizer
from weitiao.train.signals import catch_signals
from weitiao.train.stability.gradient_scaling import scale_gradients
from weitiao.train.stability.loss_scale import LossScale


def train(
    recipe: Recipe,
    reporter: Reporter,
    again: bool = False,
    overwrite: bool = False,
    allowed: Collection[str] = (),
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Fine-tune.

    Args:
        again: go on with an interrupted run.
        overwrite: move an older run in the same folder out of the way.
        allowed: findings of the pre-flight that do not refuse the run.
        callbacks: are told every event of the run.

    Raises:
        WeitiaoError: with a sentence that says what is wrong and what would be right.
    """
    distributed = Distributed(hardware.device())
    run = distributed.main_first(
        lambda first: Run.create(recipe, overwrite) if first and not again else Run.open(recipe.out)
    )
    run.can_write = distributed.is_main
    run.callbacks += callbacks
    recipe = with_rows_in(recipe, run.folder)
    if run.previous:
        reporter.say(Message("the older run was moved to {folder}", folder=run.previous))
    with run.locked():
        try:
            run_training(run, recipe, distributed, reporter, again, allowed)
        except KeyboardInterrupt as signal:
            log_end(run, "interrupted")
            code = next(iter(signal.args), INTERRUPTED)  # of the second signal; a plain Ctrl-C brings none
            text = "stopped ({status}); go on with: {command} train --resume {folder}"
            status = read_status(run.folder, ended=True).message
            raise Interrupted(text, code, status=status, command=command(), folder=run.folder) from None
        except Exception as error:
            log_end(run, "failed", message_of(error))
            raise
    return run


def run_training(
    run: Run, recipe: Recipe, distributed: Distributed, reporter: Reporter, again: bool, allowed: Collection[str]
) -> None:
    """From the open Run to its report."""
    ready = assemble(run, recipe, distributed, reporter)
    model, state, plan, found = ready.state.model, ready.state, ready.plan, ready.prepared
    objective, final = found.objective, found.final
    begun = again and has_checkpoint(run, distributed)
    if not begun:
        run.record(base_fingerprint=base_fingerprint(ready.tokens.base_chain))
        pre_flight(ready, run, distributed, reporter, allowed)
    with as_base_model(model) as base:  # without the random soft prompt or prefix that a method begins with
        measure_and_record("before", base, objective, final, recipe.evaluate, run, reporter)

    torch.manual_seed(recipe.seed)
    score = scorer(model, objective, found.validation, recipe)  # while the model still is the base model
    if again:
        resume_from(run, state, plan, distributed, reporter, begun)
    describe_row = row_describer(found.made.rows, ready.tokens.processor)
    fetch, tidy = cache_activations(ready, recipe, distributed, run, reporter)
    throughput = ThroughputMeter(model, objective, ready.loader.__getitem__, distributed.world_size)
    with catch_signals() as stop, Progress(reporter.console, plan.steps, state.step) as progress:
        run.callbacks += [progress, throughput]
        train_loop(model, ready.learnt, fetch, state, plan, run, score, distributed, stop, describe_row)
    throughput.report(run)
    run.log(events.Memory(round(ready.before_model / 2**20, 1), round(hardware.peak_mb(), 1)))

    distributed.barrier()
    restore_best(run, model)
    if distributed.is_main:
        save_adapter(model.attachment, run.folder / "adapter", recipe.base)
        objective = calibrate_thresholds(model, objective, found.validation, final, run, reporter)
        measure_and_record("after", model, objective, final, recipe.evaluate, run, reporter)
        run.log(events.End("finished", state.step, state.position, now()))
        write_report(run)
        tidy()


def log_end(run: Run, outcome: events.Outcome, reason: Message | None = None) -> None:
    """Log how training ended, unless the loop or the guard has done so."""
    last = None
    for event in run.events(events.Step, events.Rollback, events.Resume, events.End):
        last = event
    if not isinstance(last, events.End):
        step, data_step = (last.step, last.data_step) if last else (0, 0)
        run.log(events.End(outcome, step, data_step, now(), reason))


def resume(
    folder: str, reporter: Reporter, allowed: Collection[str] = (), callbacks: Sequence[Callback] = ()
) -> Run:
    """Go on with an interrupted run; on a CPU the result is bit-exactly that of an uninterrupted one.

    Raises:
        RunError: there is no such run, or it is finished.
    """
    run = Run.open(folder)
    if run.is_finished:
        delete_cache(run.folder)
        if not (run.folder / "report.html").exists():  # killed between its last line and its report
            with run.locked():
                write_report(run)
            return run
        template = "{folder} is finished already. See {folder}/report.html, or train with another out=..."
        raise RunError(template, folder=folder)
    recipe = run.recipe.model_copy(update={"out": str(run.folder)})
    return train(recipe, reporter, again=True, allowed=allowed, callbacks=callbacks)


def check(recipe: Recipe, reporter: Reporter, allowed: Collection[str] = ()) -> list[Finding]:
    """The preflight check alone: everything up to step 1, and nothing is kept.

    Raises:
        CheckError: there is an error that is not allowed.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = with_rows_in(recipe.model_copy(update={"out": f"{folder}/run"}), Path(folder, "run"))
        run = Run.create(recipe)
        distributed = Distributed(hardware.device())
        return pre_flight(assemble(run, recipe, distributed, reporter), run, distributed, reporter, allowed)


# -- the stops on the way ---------------------------------------------------------------------------------------------


@dataclass
class BaseAssets:
    """A base model's folder, tokenizer and processor."""

    folder: Path
    architecture: Architecture
    tokenizer: Any
    processor: ChatProcessor
    identity: str
    """A hash of the tokenizer's files and of the template."""
    base_chain: tuple[TrainedRun, ...] = ()
    """Results that lie between the folder and what is learnt on top, the lowest first."""

    @property
    def max_length(self) -> int | None:
        """The most tokens the model takes, by its config and its tokenizer; None: neither names a limit."""
        limits = (
            self.architecture.max_length,
            self.tokenizer.model_max_length,
        )  # RoBERTa's config counts two positions too many
        return min((x for x in limits if x and x < 10**12), default=None)  # 10**30: a tokenizer without a limit


@dataclass
class Prepared:
    """The objective that knows the data, the training rows, what validates them, and what has the last word."""

    objective: Objective
    made: Encoded
    validation: EvalSet | None
    final: EvalSet | None
    findings: list[Finding]


@dataclass
class TrainingSetup:
    """All that training needs."""

    tokens: BaseAssets
    prepared: Prepared
    loader: Loader
    plan: Plan
    state: State
    learnt: LossFunction
    """With the regularizers."""
    computes_in: torch.dtype
    before_model: int
    """Bytes that this process held before the model was loaded."""


def assemble(run: Run, recipe: Recipe, distributed: Distributed, reporter: Reporter) -> TrainingSetup:
    """Read, encode, load, attach, batch: everything up to step 1."""
    resolve.refuse_regularizers(recipe)
    wishes = recipe.evaluate.metrics
    resolve.refuse_metrics(recipe.objective, () if wishes == "auto" else wishes, recipe.train.best_metric)
    device, dtype = copy_sources_into(recipe, run, reporter)
    tokens = open_base_assets(recipe.base, recipe.revision, recipe.chat_template)
    resolve.refuse_base(recipe.objective, recipe.method, tokens.architecture)
    run.record(template={"identity": tokens.identity, "text": tokens.tokenizer.chat_template})
    prepared = prepare(recipe, tokens, run, reporter)
    before_model = psutil.Process().memory_info().rss
    torch.manual_seed(recipe.seed)
    method = distributed.main_first(lambda _: recipe.method.copy_sources_into(run.folder))
    model, choices = load(tokens, method, prepared.objective, dtype, device)
    run.record(base=model.base_identity.bf16)
    if recipe.train.implementation == "reference":
        choices = [x for x in choices if x.key != "model.block"] + [use_reference_implementation(model, dtype)]
    choices += warm_start(recipe.init_from, model, recipe, prepared.objective)
    again = resolve.choose_gradient_checkpointing(recipe)
    if again.value == "on":
        enable_gradient_checkpointing(model.model)
    reporter.report(run, *choices, again)
    loader, plan = batch(recipe, model, prepared, distributed, tokens, run, reporter)
    scale_gradients(model.model, recipe.train.gradient_scale, recipe.method.name)
    state = State(model, make_optimizer(model, plan))
    if dtype == torch.float16:
        state.loss_scale = LossScale.starting_at(recipe.train.loss_scale)
    learnt = regularized(prepared.objective, recipe.regularizers, model)
    return TrainingSetup(tokens, prepared, loader, plan, state, learnt, dtype, before_model)


def pre_flight(
    ready: TrainingSetup, run: Run, distributed: Distributed, reporter: Reporter, allowed: Collection[str]
) -> list[Finding]:
    """Look at everything once more before anything is spent.

    Raises:
        CheckError: something is wrong that is not allowed.
    """
    state, loader = ready.state, ready.loader.__getitem__
    rehearsed = preflight_steps(state.model, ready.learnt, loader, state, ready.plan, distributed, ready.computes_in)
    findings = [*ready.prepared.findings, *rehearsed]
    if trains_untied_embedding(state.model):
        rows, tokenizer = ready.prepared.made.rows, ready.tokens.tokenizer
        findings.append(unused_tokens(rows, state.model.model.get_input_embeddings().num_embeddings, tokenizer))
    run.write("preflight.json", [x.as_json() for x in findings])
    reporter.show(findings)
    refuse(distributed.all_gather(findings), allowed)
    return findings


def copy_sources_into(recipe: Recipe, run: Run, reporter: Reporter) -> tuple[torch.device, torch.dtype]:
    """Device, precision, threads, exact kernels; and the environment, written down."""
    if recipe.train.deterministic:
        hardware.use_deterministic_algorithms()
    if recipe.train.num_threads != "auto":
        torch.set_num_threads(recipe.train.num_threads)
    dtype, reason = hardware.precision(recipe.train.precision)
    stored = recipe.method.load_options().get("dtype", dtype)
    if stored != dtype:
        note = "{reason}; {method} trains the base model's own weights, so they are stored in fp32"
        reason = Message(note, reason=reason, method=recipe.method.name)
    requested = recipe.train.precision != "auto" and stored == dtype
    reporter.report(run, Decision("train.precision", str(dtype).removeprefix("torch."), reason, requested))
    reporter.warn_of_change(*run.record(environment=hardware.environment()))
    run.record(fingerprint=recipe.fingerprint)
    return hardware.device(), dtype


SHAPING = {
    "learning_rate",
    "lr_schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "optimizer",
    "precision",
    "gradient_scale",
    "guard",
}


def open_base_assets(base: str, revision: str | None = None, template: str | None = None) -> BaseAssets:
    """Base model folder, what stands on it, tokenizer, template."""
    stack = base_chain(base)
    if stack:
        base, revision = stack[0].base, stack[0].revision
        template = template or next((x.template for x in reversed(stack) if x.template), None)
    folder = resolve_base(base, revision)
    architecture, tokenizer = load_architecture(folder), load_tokenizer(folder, read_template(template))
    stops: Any = load_generation(folder).eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    feature_extractor = load_feature_extractor(folder, tokenizer) if architecture.modality == "speech" else None
    processor = ChatProcessor.make(tokenizer, stops, architecture.decoder_start_id, feature_extractor)
    identity = tokenizer_identity(folder, tokenizer.chat_template)
    return BaseAssets(folder, architecture, tokenizer, processor, identity, stack)


def prepare(recipe: Recipe, tokens: BaseAssets, run: Run, reporter: Reporter) -> Prepared:
    """Read, split and encode; say what was found."""
    training, held = read_and_split(recipe, run, reporter)
    objective = recipe.objective.fit([x.example for x in training])
    max_length, overlong = resolve.choose_max_length(recipe, tokens.max_length), resolve.choose_overlong(recipe, objective)
    reporter.report(run, max_length, overlong)
    encoder = Encoder(objective, tokens.processor, tokens.identity, max_length.value, overlong.value, reporter)
    run.record(objective=objective.as_recipe())
    made = encoder.encode(training)
    report_rows(made, len(training), objective, recipe, tokens.processor, run, reporter)
    validation = encoder.hold_out(held, run)
    asked = recipe.evaluate.data
    last = read(asked, recipe, run, reporter).examples if asked else []
    final = encoder.hold_out(last, run) if asked else validation
    findings = list(check_data(made, training, [*held, *last], tokens.tokenizer, tokens.processor.stop_ids))
    return Prepared(objective, made, validation, final, findings)


def load(
    tokens: BaseAssets, method: Method, objective: Objective, dtype: torch.dtype, device: torch.device
) -> tuple[TrainableModel, list[Decision]]:
    """Base weights and what stands on them, method attached, heads made."""
    base = load_stacked_base(tokens.folder, tokens.base_chain, method, dtype, device, tokens.processor)
    stored = sum(p.numel() for p in base.model.parameters())
    identity = BaseIdentity(identity_of(base.model), identity_of(base.model, torch.bfloat16))
    model = attach(base, method, objective, tokens.processor)
    model.base_identity = identity
    count = sum(p.numel() for p in model.trainable().values())
    whole = base.weights - stored + sum(p.numel() for p in (*base.model.parameters(), *model.heads.parameters()))
    reason = Message("{method}: {share:.2%} of {total:,}", method=method.name, share=count / whole, total=whole)
    share = Decision("model.trainable_weights", count, reason)
    return model, [*base.choices, share]


def batch(
    recipe: Recipe,
    model: TrainableModel,
    found: Prepared,
    distributed: Distributed,
    tokens: BaseAssets,
    run: Run,
    reporter: Reporter,
) -> tuple[Loader, Plan]:
    """The loader and the plan, every `auto` resolved and said."""
    rows, settings, objective = found.made.rows, recipe.train, found.objective
    if virtual_tokens := len(model.attachment.virtual_tokens()):
        resolve.check_room_for_virtual_tokens(
            virtual_tokens, max(objective.num_positions(rows[i]) for i in range(len(rows))), tokens.max_length
        )
    weights, mixed = resolve.choose_weights(recipe, rows.source, rows.lengths)
    epoch_tokens = int(sum(weights[s] * n for s, n in zip(rows.source, rows.lengths)))
    facts = resolve.model_facts(model.model.config, rows.lengths, epoch_tokens)
    size = resolve.choose_batch(recipe, facts)
    micro = resolve.choose_micro_batch(recipe, facts, model.device, next(model.model.parameters()).dtype)
    loader = Loader(rows, recipe.seed, weights=weights, rank=distributed.rank, world=distributed.world_size)
    setattr(loader, size.key.removeprefix("train."), size.value)
    loader.micro_batch_tokens = None if objective.traits.batch_coupled else micro.value
    steps = resolve.choose_steps(recipe, loader.steps(settings.epochs))
    rate = resolve.choose_learning_rate(recipe, recipe.method)
    evaluate_every, save_every = resolve.choose_intervals(recipe, steps.value, found.validation is not None)
    head_rate = objective.choose_head_rate()
    told = [*mixed, size, micro, steps, rate, *([head_rate] if head_rate else []), evaluate_every, save_every]
    reporter.report(run, *told, resolve.choose_guard(recipe))
    identity = {
        "data": rows.fingerprint,
        "tokenizer and template": tokens.identity,
        size.key: str(size.value),
        "steps": str(steps.value),
        "base": model.base_identity.exact,
        "seed": str(recipe.seed),
        "method": json.dumps(recipe.method.as_recipe()) + (recipe.init_from or ""),
        "objective": json.dumps([x.as_recipe() for x in (recipe.objective, *recipe.regularizers)]),
        **{f"train.{key}": json.dumps(value) for key, value in settings.model_dump(mode="json", include=SHAPING).items()},
    }
    step = resolve.choose_step(recipe.method, objective)
    rhythm = (evaluate_every.value, save_every.value)
    fast = head_rate.value if head_rate else None
    return loader, Plan(settings, steps.value, rate.value, *rhythm, step, identity, recipe.seed, fast)


def cache_activations(
    ready: TrainingSetup, recipe: Recipe, distributed: Distributed, run: Run, reporter: Reporter
) -> tuple[Callable[[int], list[Batch]], Callable[[], None]]:
    """The loader, if it pays with what frozen layers give, run once and kept on disk; and what tidies up in the end."""
    model, rows, asked = ready.state.model, ready.prepared.made.rows, recipe.train.activation_cache
    why_not = resolve.activation_cache_refusal(recipe, ready.prepared.objective, distributed.world_size)
    once, budget = ready.loader.epoch(0), 1e9 * (asked if isinstance(asked, float) else 8)
    often = ready.plan.steps * sum(map(len, once)) / len(once) / len(rows)
    choice = decided(run) or (choose(model, rows, run.folder, budget, often, why_not) if asked != "off" else None)
    reporter.report(run, *([choice] if choice else []))
    return keep(choice, model, rows, run, reporter, ready.loader.__getitem__)


def scorer(
    model: TrainableModel, objective: Objective, eval_set: EvalSet | None, recipe: Recipe
) -> Callable[[], dict[str, Score]]:
    """What `train` calls to validate: the loss, the metric that decides what is best, and the drift from the base."""
    wanted, wishes = tuple(dict.fromkeys(("loss", recipe.train.best_metric))), recipe.evaluate
    drift = Drift(model) if model.architecture.kind == "decoder" else None

    def score() -> dict[str, Score]:
        far = {"drift": drift(model)} if drift else {}
        if eval_set is None:
            return far
        return measure(model, objective, eval_set, wanted, wishes.limit, wishes.max_new_tokens).scores | far

    return score
