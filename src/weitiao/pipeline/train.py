"""The whole trip on one page: the only file that knows every station.

open the Run -> read -> split -> encode -> load -> attach -> batch -> train -> evaluate -> report
"""

import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, PreTrainedConfig

from weitiao.core import hardware
from weitiao.core.batch import Batch
from weitiao.core.reporter import Desk
from weitiao.core.errors import INTERRUPTED, Interrupted, RunError
from weitiao.core.finding import Finding, refuse
from weitiao.core.eval_set import HeldOut
from weitiao.core.hardware import Choice
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.regularizer import regularized
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TunableModel, identity_of
from weitiao.data.encode import Encoded
from weitiao.data.checks import inspect, unused_tokens
from weitiao.data.loader import Loader
from weitiao.data.prepare import Encoder, read, read_and_split, row_teller, show_rows
from weitiao.data.tokenization import ChatProcessor
from weitiao.data.audio import ear_of
from weitiao.data.template import read_template, tokenizer_identity
from weitiao.model.adapters.peft_format import save_adapter
from weitiao.evaluate.record import measure_now
from weitiao.evaluate.drift import Drift
from weitiao.evaluate.measure import measure
from weitiao.evaluate.report import write_report
from weitiao.evaluate.thresholds import tune
from weitiao.pipeline.trained import Learnt, attach, begin_with, below, stand, stands_on
from weitiao.model.adapters.architecture import has_halves, is_encoder
from weitiao.model.loading.sources import resolve_base
from weitiao.model.backbone.activation_cache import choose, decided, forget, keep
from weitiao.model.loading.load import load_generation, load_tokenizer, make_plain
from weitiao.model.layers.gradient_checkpointing import recompute
from weitiao.model.profiling.throughput import Speed
from weitiao.plan import resolve
from weitiao.train.distributed import Machines
from weitiao.train.checkpoints.best import load_kept
from weitiao.train.loop import train as train_loop
from weitiao.train.stability.loss_scale import LossScale
from weitiao.train.settings import Plan, make_optimizer
from weitiao.train.progress import Progress
from weitiao.train.preflight import rehearse
from weitiao.train.checkpoints.resume import go_back, has_begun
from weitiao.train.stability.gradient_scaling import shrink_gradients
from weitiao.train.checkpoints.state import State
from weitiao.train.signals import listening


def train(recipe: Recipe, desk: Desk, again: bool = False, replace_old: bool = False, allowed: Collection[str] = ()) -> Run:
    """Fine-tune.

    Args:
        again: go on with an interrupted run.
        allowed: findings of the pre-flight that do not refuse the run.

    Raises:
        WeitiaoError: with a sentence that says what is wrong and what would be right.
    """
    machines = Machines(hardware.device())
    run = machines.after_the_first(
        lambda first: Run.create(recipe, replace_old) if first and not again else Run.open(recipe.out)
    )
    run.writes = machines.first
    if run.aside:
        desk.console.print(f"the older run was put aside as {run.aside}", soft_wrap=True)
    with run.held():
        try:
            take_the_trip(run, recipe, machines, desk, again, allowed)
        except KeyboardInterrupt as asked:
            how = f"go on with: {hardware.command()} train --resume {run.folder}"
            code = next(iter(asked.args), INTERRUPTED)  # of the second signal; a plain Ctrl-C brings none
            raise Interrupted(f"stopped ({run.status}); {how}", code) from None
    return run


def take_the_trip(run: Run, recipe: Recipe, machines: Machines, desk: Desk, again: bool, allowed: Collection[str]) -> None:
    """From the open Run to its report."""
    ready = get_ready(run, recipe, machines, desk)
    model, state, plan, found = ready.state.model, ready.state, ready.plan, ready.prepared
    objective, final = found.objective, found.final
    begun = again and has_begun(run, machines)
    if not begun:
        run.add_to_plan(stands_on=stands_on(ready.tokens.below))
        pre_flight(ready, run, machines, desk, allowed)
    with model.before_training() as base:  # without the random soft prompt or prefix that a method begins with
        measure_now("before", base, objective, final, recipe.evaluate, run, desk)

    torch.manual_seed(recipe.seed)
    score = scorer(model, objective, found.validation, recipe)  # while the model still is the base model
    if again:
        go_back(run, state, plan, machines, desk, begun)
    tell_row = row_teller(found.made.rows, ready.tokens.processor)
    fetch, tidy = keep_frozen(ready, recipe, machines, run, desk)
    speed = Speed(model, objective, ready.loader.__getitem__, machines.world)
    with listening() as stop, Progress(desk.console, plan.steps, state.step) as progress:
        run.listeners += [progress, speed]
        train_loop(model, ready.learnt, fetch, state, plan, run, score, machines, stop, tell_row)
    speed.tell(run)
    run.note("memory", before_model_mb=round(ready.before_model / 2**20, 1), peak_mb=round(hardware.peak_mb(), 1))

    machines.wait()
    load_kept(run, model)
    if machines.first:
        save_adapter(model.attachment, run.folder / "adapter", recipe.base)
        objective = tune(model, objective, found.validation, final, run, desk)
        measure_now("after", model, objective, final, recipe.evaluate, run, desk)
        run.note("finished", step=state.step, position=state.position)
        write_report(run)
        tidy()


def resume(folder: str, desk: Desk, allowed: Collection[str] = ()) -> Run:
    """Go on with an interrupted run; it ends as it would have without the interruption, to the bit on a CPU."""
    run = Run.open(folder)
    if run.status == "finished":
        forget(run.folder)
        if not (run.folder / "report.html").exists():  # killed between its last line and its report
            with run.held():
                write_report(run)
            return run
        raise RunError(f"{folder} is finished already. Look at {run.folder}/report.html, or train with another out=...")
    return train(run.recipe.model_copy(update={"out": str(run.folder)}), desk, again=True, allowed=allowed)


def check(recipe: Recipe, desk: Desk, allowed: Collection[str] = ()) -> list[Finding]:
    """The pre-flight alone: everything up to step 1, and nothing is kept.

    Raises:
        CheckError: something is wrong that is not allowed.
    """
    with tempfile.TemporaryDirectory() as place:
        run = Run.create(recipe.model_copy(update={"out": f"{place}/run"}))
        machines = Machines(hardware.device())
        return pre_flight(get_ready(run, recipe, machines, desk), run, machines, desk, allowed)


# -- the stops on the way ---------------------------------------------------------------------------------------------


@dataclass
class Tokens:
    """A base model's folder, tokenizer and processor."""

    folder: Path
    tokenizer: Any
    processor: ChatProcessor
    identity: str
    """A hash of the tokenizer's files and of the template."""
    below: tuple[Learnt, ...] = ()
    """Results that lie between the folder and what is learnt on top, the lowest first."""

    @property
    def encoder(self) -> str:
        """The family of a model that writes nothing; "" for one that writes."""
        config = AutoConfig.from_pretrained(self.folder, local_files_only=True)
        return config.model_type if is_encoder(config) else ""

    @property
    def halves(self) -> bool:
        """An encoder reads, a decoder writes."""
        return has_halves(AutoConfig.from_pretrained(self.folder, local_files_only=True))

    @property
    def longest(self) -> int | None:
        """The most tokens that the model was made for, if its config says so."""
        config = PreTrainedConfig.get_config_dict(self.folder)[0]
        known = [config.get(x) for x in ("max_position_embeddings", "n_positions", "max_target_positions")]
        limits = next(filter(None, known), None), self.tokenizer.model_max_length
        return min((x for x in limits if x and x < 10**12), default=None)  # RoBERTa's table has two places more


@dataclass
class Prepared:
    """The objective that knows the data, the training rows, what validates them, and what has the last word."""

    objective: Objective
    made: Encoded
    validation: HeldOut | None
    final: HeldOut | None
    findings: list[Finding]


@dataclass
class Ready:
    """All that training needs."""

    tokens: Tokens
    prepared: Prepared
    loader: Loader
    plan: Plan
    state: State
    learnt: Objective
    """With the regularizers."""
    computes_in: torch.dtype
    before_model: int
    """Bytes that this process held before the model was loaded."""


def get_ready(run: Run, recipe: Recipe, machines: Machines, desk: Desk) -> Ready:
    """Read, encode, load, attach, batch: everything up to step 1."""
    resolve.refuse_regularizers(recipe)
    wishes = recipe.evaluate.metrics
    resolve.refuse_metrics(recipe.objective, () if wishes == "auto" else wishes, recipe.train.best)
    device, dtype = settle(recipe, run, desk)
    tokens = open_tokens(recipe.base, recipe.revision, recipe.template)
    resolve.refuse_base(recipe.objective, recipe.method, tokens.encoder, tokens.halves)
    run.add_to_plan(template={"identity": tokens.identity, "text": tokens.tokenizer.chat_template})
    prepared = prepare(recipe, tokens, run, desk)
    before_model = psutil.Process().memory_info().rss
    torch.manual_seed(recipe.seed)
    method = machines.after_the_first(lambda _: recipe.method.settle(run.folder))
    model, choices = load(tokens, method, prepared.objective, dtype, device)
    run.add_to_plan(base=model.base_rounded)
    if recipe.train.engine == "plain":
        choices = [x for x in choices if x.key != "model.block"] + [make_plain(model, dtype)]
    choices += begin_with(recipe.start, model, recipe, prepared.objective)
    again = resolve.choose_recompute(recipe)
    if again.value == "on":
        recompute(model.model)
    desk.tell(run, *choices, again)
    loader, plan = batch(recipe, model, prepared, machines, tokens, run, desk)
    shrink_gradients(model.model, recipe.train.shrink, recipe.method.name)
    state = State(model, make_optimizer(model, plan))
    if dtype == torch.float16:
        state.loss_scale = LossScale.starting_at(recipe.train.loss_scale)
    learnt = regularized(prepared.objective, recipe.regularizers, model)
    return Ready(tokens, prepared, loader, plan, state, learnt, dtype, before_model)


def pre_flight(ready: Ready, run: Run, machines: Machines, desk: Desk, allowed: Collection[str]) -> list[Finding]:
    """Look at everything once more before anything is spent.

    Raises:
        CheckError: something is wrong that is not allowed.
    """
    state, loader = ready.state, ready.loader.__getitem__
    rehearsed = rehearse(state.model, ready.learnt, loader, state, ready.plan, machines, ready.computes_in)
    findings = [*ready.prepared.findings, *rehearsed]
    if state.model.untied_embedding_is_trained:
        rows, tokenizer = ready.prepared.made.rows, ready.tokens.tokenizer
        findings.append(unused_tokens(rows, state.model.embedding.num_embeddings, tokenizer))
    run.write("check.json", [x.as_json() for x in findings])
    desk.show(findings)
    refuse(machines.collect(findings), allowed)
    return findings


def settle(recipe: Recipe, run: Run, desk: Desk) -> tuple[torch.device, torch.dtype]:
    """Device, precision, threads, exact kernels; and the environment, written down."""
    if recipe.train.deterministic:
        hardware.be_deterministic()
    if recipe.train.threads != "auto":
        torch.set_num_threads(recipe.train.threads)
    dtype, reason = hardware.precision(recipe.train.precision)
    stored = recipe.method.load_options().get("dtype", dtype)
    reason += "" if stored == dtype else f"; {recipe.method.name} moves the base's own weights: they are kept in fp32"
    desk.tell(run, Choice("train.precision", str(dtype).removeprefix("torch."), reason))
    desk.warn_of_change(*run.stands_in(hardware.environment()))
    run.add_to_plan(fingerprint=recipe.fingerprint)
    return hardware.device(), dtype


SHAPING = {"learning_rate", "schedule", "warmup", "weight_decay", "clip", "optimizer", "precision", "shrink", "guard"}


def open_tokens(base: str, revision: str | None = None, template: str | None = None) -> Tokens:
    """Base model folder, what stands on it, tokenizer, template."""
    stack = below(base)
    if stack:
        base, revision = stack[0].base, stack[0].revision
        template = template or next((x.template for x in reversed(stack) if x.template), None)
    folder = resolve_base(base, revision)
    tokenizer = load_tokenizer(folder, read_template(template))
    stops: Any = load_generation(folder).eos_token_id
    start = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "decoder_start_token_id", None)
    stops = stops if isinstance(stops, list) else [stops]
    processor = ChatProcessor.make(tokenizer, stops, start, ear_of(folder, tokenizer))
    return Tokens(folder, tokenizer, processor, tokenizer_identity(folder, tokenizer.chat_template), stack)


def prepare(recipe: Recipe, tokens: Tokens, run: Run, desk: Desk) -> Prepared:
    """Read, split and encode; say what was found."""
    training, held = read_and_split(recipe, run, desk)
    objective = recipe.objective.fit([x.example for x in training])
    context, too_long = resolve.choose_context(recipe, tokens.longest), resolve.choose_too_long(recipe, objective)
    desk.tell(run, context, too_long)
    encoder = Encoder(objective, tokens.processor, tokens.identity, context.value, too_long.value, desk)
    run.add_to_plan(objective=objective.as_recipe())
    made = encoder.encode(training)
    show_rows(made, len(training), objective, recipe, tokens.processor, run, desk)
    validation = encoder.hold_out(held, run)
    asked = recipe.evaluate.data
    last = read(asked, recipe, run, desk).examples if asked else []
    final = encoder.hold_out(last, run) if asked else validation
    findings = list(inspect(made, training, [*held, *last], tokens.tokenizer, tokens.processor.stop_ids))
    return Prepared(objective, made, validation, final, findings)


def load(
    tokens: Tokens, method: Method, objective: Objective, dtype: torch.dtype, device: torch.device
) -> tuple[TunableModel, list[Choice]]:
    """Base weights and what stands on them, method attached, heads made."""
    base = stand(tokens.folder, tokens.below, method, dtype, device, tokens.processor)
    stored = sum(p.numel() for p in base.model.parameters())
    identity, rounded = identity_of(base.model), identity_of(base.model, torch.bfloat16)
    model = attach(base, method, objective, tokens.processor)
    model.base_identity, model.base_rounded = identity, rounded
    count = sum(p.numel() for p in model.trainable().values())
    whole = base.weights - stored + sum(p.numel() for p in (*base.model.parameters(), *model.heads.parameters()))
    share = Choice("trained weights", f"{count:,}", f"{method.name}: {100 * count / whole:.2f} % of {whole:,}")
    return model, [*base.choices, share]


def batch(
    recipe: Recipe, model: TunableModel, found: Prepared, machines: Machines, tokens: Tokens, run: Run, desk: Desk
) -> tuple[Loader, Plan]:
    """The loader and the plan, every `auto` resolved and said."""
    rows, settings, objective = found.made.rows, recipe.train, found.objective
    if slots := len(model.attachment.slots()):
        resolve.leave_room(slots, max(objective.reach(rows[i]) for i in range(len(rows))), tokens.longest)
    weights, mixed = resolve.choose_weights(recipe, rows.source, rows.lengths)
    epoch_tokens = int(sum(weights[s] * n for s, n in zip(rows.source, rows.lengths)))
    facts = resolve.model_facts(model.model.config, rows.lengths, epoch_tokens)
    size = resolve.choose_batch(recipe, facts)
    micro = resolve.choose_micro(recipe, facts, model.device, next(model.model.parameters()).dtype)
    loader = Loader(rows, recipe.seed, weights=weights, rank=machines.rank, world=machines.world)
    setattr(loader, size.key.removeprefix("train."), size.value)
    loader.micro_tokens = None if objective.couples_rows else micro.value
    steps = resolve.choose_steps(recipe, loader.steps(settings.epochs))
    rate = resolve.choose_learning_rate(recipe, recipe.method)
    evaluate_every, save_every = resolve.choose_rhythm(recipe, steps.value, found.validation is not None)
    head_rate = objective.choose_head_rate()
    told = [*mixed, size, micro, steps, rate, *([head_rate] if head_rate else []), evaluate_every, save_every]
    desk.tell(run, *told, resolve.choose_guard(recipe))
    identity = {
        "data": rows.fingerprint,
        "tokenizer and template": tokens.identity,
        size.key: str(size.value),
        "steps": str(steps.value),
        "base": model.base_identity,
        "seed": str(recipe.seed),
        "method": json.dumps(recipe.method.as_recipe()) + (recipe.start or ""),
        "objective": json.dumps([x.as_recipe() for x in (recipe.objective, *recipe.regularizers)]),
        **{f"train.{key}": json.dumps(value) for key, value in settings.model_dump(mode="json", include=SHAPING).items()},
    }
    step = resolve.choose_step(recipe.method, objective)
    rhythm = (evaluate_every.value, save_every.value)
    fast = head_rate.value if head_rate else None
    return loader, Plan(settings, steps.value, rate.value, *rhythm, step, identity, recipe.seed, fast)


def keep_frozen(
    ready: Ready, recipe: Recipe, machines: Machines, run: Run, desk: Desk
) -> tuple[Callable[[int], list[Batch]], Callable[[], None]]:
    """The loader, if it pays with what frozen layers give, run once and kept on disk; and what tidies up in the end."""
    model, rows, asked = ready.state.model, ready.prepared.made.rows, recipe.train.keep_frozen
    why_not = resolve.against_keeping(recipe, ready.prepared.objective, machines.world)
    once, budget = ready.loader.epoch(0), 1e9 * (asked if isinstance(asked, float) else 8)
    often = ready.plan.steps * sum(map(len, once)) / len(once) / len(rows)
    choice = decided(run) or (choose(model, rows, run.folder, budget, often, why_not) if asked != "off" else None)
    desk.tell(run, *([choice] if choice else []))
    return keep(choice, model, rows, run, desk, ready.loader.__getitem__)


def scorer(
    model: TunableModel, objective: Objective, held_out: HeldOut | None, recipe: Recipe
) -> Callable[[], dict[str, Score]]:
    """What `train` calls to validate: the loss, the metric that decides what is best, and the drift from the base."""
    wanted, wishes = tuple(dict.fromkeys(("loss", recipe.train.best))), recipe.evaluate
    drift = Drift(model) if model.vocabulary is not None and not model.halves else None

    def score() -> dict[str, Score]:
        far = {"drift": drift(model)} if drift else {}
        if held_out is None:
            return far
        return measure(model, objective, held_out, wanted, wishes.limit, wishes.max_new_tokens).scores | far

    return score
