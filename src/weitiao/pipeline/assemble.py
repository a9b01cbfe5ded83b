"""Everything up to step 1: read, split, encode, load, attach, resolve, batch; and the preflight check.

setup_environment -> open_base_assets -> prepare_data -> load_model -> plan_training -> TrainingSetup
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, cast

import psutil
import torch

from weitiao.core import hardware
from weitiao.core.batch import Batch
from weitiao.core.decoding import decoding_decision
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat
from weitiao.core.finding import Decision, Finding, refuse
from weitiao.core.messages import Message
from weitiao.core.mixing import Groups, Mixture
from weitiao.core.objective import LossFunction, Objective
from weitiao.core.recipe import Recipe, effective_mixing
from weitiao.core.recipe_sections import Evaluate
from weitiao.core.regularizer import regularized
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel, trains_untied_embedding
from weitiao.data.chat_checks import check_chats, common_system
from weitiao.data.checks import check_data, new_tokens_in, unused_tokens
from weitiao.data.encode import Encoded
from weitiao.data.label_checks import check_labels
from weitiao.data.loader import Loader
from weitiao.data.mixing_groups import groups_of
from weitiao.data.prepare import Encoder, read, read_and_split, read_corpus, report_rows
from weitiao.data.read import Reading
from weitiao.data.vocabulary import check_vocabulary
from weitiao.data.window_rows import dropped_turns_decision
from weitiao.evaluate.drift import Drift
from weitiao.evaluate.examination.items import PreparedExam
from weitiao.evaluate.forgetting.few_shot import FewShot, draw_examples
from weitiao.evaluate.forgetting.probes import Suite
from weitiao.evaluate.measure import measure, requested_metrics
from weitiao.evaluate.retrieval_baselines import Baseline
from weitiao.evaluate.room import answer_room, generates, reference_lengths, room_finding
from weitiao.model.backbone import activation_cache
from weitiao.model.backbone.choose import use_reference_implementation
from weitiao.model.generation.choose import choose_forward
from weitiao.model.layers.gradient_checkpointing import enable_gradient_checkpointing
from weitiao.pipeline.exam_data import open_exams
from weitiao.pipeline.forgetting import is_measured, suites_for
from weitiao.pipeline.load import BaseAssets, load, open_base_assets, warm_start
from weitiao.pipeline.mixing import report_mixing
from weitiao.pipeline.resume_identity import resume_identity
from weitiao.pipeline.retrieval_baselines import baselines_for
from weitiao.pipeline.vocabulary_learning import with_own_vocabulary
from weitiao.plan import compatibility
from weitiao.plan.mixing import Shares, check_mixing
from weitiao.plan.resolve import Facts, Resolved, RowLimits, facts_of, resolve, resolve_rows
from weitiao.train.checkpoints.state import State
from weitiao.train.distributed import Distributed
from weitiao.train.preflight import preflight_steps
from weitiao.train.settings import Plan, make_optimizer
from weitiao.train.stability.gradient_scaling import scale_gradients
from weitiao.train.stability.loss_scale import LossScale

CACHE_GB = 8.0  # what `activation_cache: auto` may take on the disk


@dataclass
class PreparedData:
    """The rows, encoded, and the objective that is fitted to them."""

    assets: BaseAssets
    """The base's, with the tokenizer that the rows are encoded with."""
    objective: Objective
    limits: RowLimits
    encoded: Encoded
    """The training rows."""
    validation: EvalSet | None
    final: EvalSet | None
    """What is measured before and after training."""
    evaluate: Evaluate
    """How, with every automatic value resolved."""
    findings: list[Finding]
    groups: Groups
    """What is mixed by shares, or told of: sources, tasks or classes."""
    baselines: Sequence[Baseline] = ()
    """Rankings without a model, where the objective searches."""
    few_shot: FewShot | None = None
    """Training rows for the prompt of the base that the result is compared with."""


@dataclass
class TrainingSetup:
    """All that training needs."""

    assets: BaseAssets
    data: PreparedData
    resolved: Resolved
    loader: Loader
    plan: Plan
    state: State
    loss_function: LossFunction
    """The objective, with the regularizers."""
    compute_dtype: torch.dtype
    memory_before_model: int
    """Bytes that this process held before the model was loaded."""
    exams: Sequence[PreparedExam] = ()
    """Those that are taken before and after."""
    suites: Sequence[Suite] = ()
    """What forgetting is measured with."""


def assemble(run: Run, recipe: Recipe, distributed: Distributed, reporter: Reporter) -> TrainingSetup:
    """From the recipe to a model and a loader that are ready for step 1; all decisions are recorded.

    Raises:
        WeitiaoError: the recipe's parts do not go together, or data or base model cannot be used.
    """
    compatibility.check_regularizers(recipe)
    check_mixing(recipe)
    metrics = () if recipe.evaluate.metrics == "auto" else recipe.evaluate.metrics
    compatibility.check_metrics(recipe.objective, metrics, recipe.train.best_metric)
    exams = open_exams(recipe.evaluate.exams)
    device, dtype = setup_environment(recipe, run, reporter)
    with reporter.phase(run, "open_base", Message("opening the base model {base}", base=recipe.base)):
        literal = not all(x.parse_special_tokens for x in recipe.data)
        date = fix_date(run, distributed)
        assets = open_base_assets(recipe.base, recipe.revision, recipe.chat_template, date, not literal)
    compatibility.check_base(recipe.objective, recipe.method, assets.architecture)
    if exams:
        compatibility.check_decoder(assets.architecture)
    if (warning := compatibility.check_max_length(recipe, assets.architecture)) is not None:
        reporter.warn(warning)
    data = prepare_data(recipe, assets, run, reporter, distributed)
    assets = data.assets
    memory_before_model = psutil.Process().memory_info().rss
    with reporter.phase(run, "load", Message("loading the model")):
        model, decisions = load_model(recipe, assets, data, distributed, run, device, dtype)
    resolved, loader, plan = plan_training(recipe, model, data, assets, distributed)
    data.findings += report_mixing(data.groups, resolved, loader, run, reporter)
    if (warning := compatibility.check_patience(recipe, resolved.steps, resolved.evaluate_every)) is not None:
        reporter.warn(warning)
    if resolved.gradient_checkpointing:
        enable_gradient_checkpointing(model.model)
    scale_gradients(model.model, recipe.train.gradient_scale, recipe.method.name)
    state = State(model, make_optimizer(model, plan))
    if dtype == torch.float16:
        state.loss_scale = LossScale.starting_at(recipe.train.loss_scale)
    template = {"identity": assets.identity, "text": assets.tokenizer.chat_template}
    changes = run.record(values=resolved.values(), base=model.base_identity.bf16, template=template)
    if generates(data.objective):
        num_beams = data.objective.as_recipe().get("num_beams", 1)
        decisions.append(decoding_decision(model, int(data.evaluate.max_new_tokens), num_beams))
        decisions += [choose_forward(model)[1]] if assets.architecture.kind == "decoder" else []
    forgetting = is_measured(recipe, data.objective, assets)
    suites = suites_for(recipe, data.objective, assets) if forgetting.value else ()
    reporter.report(run, *decisions, *resolved.decisions, forgetting)
    reporter.warn_of_change(*changes)
    loss_function = regularized(data.objective, recipe.regularizers, model)
    return TrainingSetup(
        assets, data, resolved, loader, plan, state, loss_function, dtype, memory_before_model, exams, suites
    )


def fix_date(run: Run, distributed: Distributed) -> str:
    """The moment at which the run was first prepared, which chat templates may write; a resumed run has the same."""

    def recorded(is_main: bool) -> Any:
        date = run.read("resolved.json", {}).get("date")
        if date is None and is_main:
            date = datetime.now().isoformat(timespec="seconds")
            run.record(date=date)
        return date

    return distributed.main_first(recorded)


def setup_environment(recipe: Recipe, run: Run, reporter: Reporter) -> tuple[torch.device, torch.dtype]:
    """Device, precision, threads and deterministic kernels; the environment is recorded."""
    if recipe.train.deterministic:
        hardware.use_deterministic_algorithms()
    if recipe.train.num_threads != "auto":
        torch.set_num_threads(recipe.train.num_threads)
    dtype, reason = hardware.precision(recipe.train.precision)
    is_stored_in = recipe.method.load_options().get("dtype", dtype)
    requested = recipe.train.precision != "auto" and is_stored_in == dtype
    if is_stored_in != dtype:
        reason = Message(
            "{reason}; {method} trains the base model's own weights, so they are stored in fp32",
            reason=reason,
            method=recipe.method.name,
        )
    reporter.report(run, Decision("train.precision", str(dtype).removeprefix("torch."), reason, requested))
    reporter.warn_of_change(*run.record(environment=hardware.environment(), fingerprint=recipe.fingerprint))
    return hardware.device(), dtype


def prepare_data(
    recipe: Recipe, assets: BaseAssets, run: Run, reporter: Reporter, distributed: Distributed
) -> PreparedData:
    """Read, split and encode the rows; fit the objective to them; show what carries loss."""
    with reporter.phase(run, "read", Message("reading the data")):
        training, held_out, column_findings = read_and_split(recipe, run, reporter)
        compatibility.check_stopping(recipe, len(held_out.examples))
        final_sources = recipe.evaluate.data
        final_rows = read(final_sources, recipe, run, reporter) if final_sources else Reading()
        column_findings += final_rows.findings()
        corpus = read_corpus(recipe)
        objective = recipe.objective.fit([x.example for x in training])
    assets = with_own_vocabulary(recipe, assets, training, held_out.examples, run, distributed, reporter)
    limits = resolve_rows(recipe, objective, assets.max_length)
    encoder = Encoder(objective, assets.processor, assets.identity, limits.max_length, limits.overlong, reporter)
    with reporter.phase(run, "encode", Message("encoding the rows")):
        encoded = encoder.encode(training)
        report_rows(encoded, len(training), objective, recipe, assets.processor, run, reporter)
        if encoded.trimmed:
            reporter.report(run, dropped_turns_decision(encoded, limits.max_length, run))
        validation = encoder.hold_out(held_out.examples, run, held_out.bad, corpus)
        final = encoder.hold_out(final_rows.examples, run, final_rows.bad, corpus) if final_sources else validation
    if validation is not None:
        rows = validation
        compatibility.check_best_metric(recipe, objective, lambda task: bool((rows.tasks.get(task) or rows).answers))
    objective, evaluate, room_findings = make_room(recipe, objective, encoded, [validation, final], assets, run, reporter)
    run.record(objective=objective.as_recipe())
    examples = [*held_out.examples, *final_rows.examples]
    findings = [*column_findings, *check_labels(training, examples), *room_findings]
    findings += check_data(encoded, training, examples, assets.tokenizer, assets.processor.stop_ids)
    chats = [x for x in (y.without_task.example for y in training) if isinstance(x, Chat)]
    findings += check_chats(chats, assets.processor)
    findings += check_vocabulary(encoded.rows, training, objective, assets.tokenizer)
    run.record(system=common_system(training, len(recipe.data)))
    few_shot = None
    if final is not None and not final.tasks and recipe.evaluate.forgetting is not False:
        own = [x.example for x in training if x.source < len(recipe.data)]  # without replay
        few_shot = draw_examples(own, final, recipe.seed)
    baselines = baselines_for(objective, [x for x in training if x.source < len(recipe.data)], final)
    groups = groups_of(recipe, training, encoded.rows)
    return PreparedData(
        assets, objective, limits, encoded, validation, final, evaluate, findings, groups, baselines, few_shot
    )


def make_room(
    recipe: Recipe,
    objective: Objective,
    encoded: Encoded,
    eval_sets: Sequence[EvalSet | None],
    assets: BaseAssets,
    run: Run,
    reporter: Reporter,
) -> tuple[Objective, Evaluate, list[Finding]]:
    """The objective and the evaluation with room for the longest answer; a finding where right answers would be cut off.

    Args:
        eval_sets: validation, and what is measured before and after training.
    """
    settings, final = recipe.evaluate, eval_sets[-1]
    lengths = reference_lengths(eval_sets, assets.processor, settings.limit) if generates(objective) else []
    objective = objective.with_room(max([int(encoded.rows.supervised.max()), *(n + 1 for n in lengths)]))
    room = answer_room(settings, lengths)
    if not generates(objective):
        return objective, settings.model_copy(update={"max_new_tokens": room.value}), []
    if objective.traits.needs_encoder_decoder:  # it generates its answers itself, and has room for them
        room = replace(room, key="objective.max_new_tokens", value=objective.as_recipe()["max_new_tokens"])
    reporter.report(run, room)
    metrics = requested_metrics(settings, objective, final) if final is not None else ()
    finding = room_finding(objective, (*metrics, recipe.train.best_metric), room.value, lengths)
    return objective, settings.model_copy(update={"max_new_tokens": room.value}), [finding] if finding else []


def load_model(
    recipe: Recipe,
    assets: BaseAssets,
    data: PreparedData,
    distributed: Distributed,
    run: Run,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[TrainableModel, list[Decision]]:
    """The trainable model with its initial weights, and what was decided."""
    torch.manual_seed(recipe.seed)
    method = distributed.main_first(lambda _: recipe.method.copy_sources_into(run.folder))
    model, decisions = load(assets, method, data.objective, dtype, device)
    if recipe.train.implementation == "reference":
        decisions.append(use_reference_implementation(model, dtype))
    return model, [*decisions, *warm_start(recipe.init_from, model, recipe, data.objective)]


def plan_training(
    recipe: Recipe, model: TrainableModel, data: PreparedData, assets: BaseAssets, distributed: Distributed
) -> tuple[Resolved, Loader, Plan]:
    """Resolve what is still automatic, and make the loader and the plan that follow from it."""
    rows, objective = data.encoded.rows, data.objective
    if virtual_tokens := len(model.attachment.virtual_tokens()):
        longest = max(objective.num_positions(rows[i]) for i in range(len(rows)))
        compatibility.check_virtual_tokens(virtual_tokens, longest, assets.max_length)

    def loader_for(mixed_by: tuple[float, ...] | Shares, batch: dict[str, Any]) -> Loader:
        if isinstance(mixed_by, Shares):
            mixture = Mixture(data.groups.group, mixed_by.actual, mixed_by.epoch_tokens)
            return Loader(rows, recipe.seed, mixture=mixture, rank=distributed.rank, world=distributed.world_size, **batch)
        rank, world = distributed.rank, distributed.world_size
        return Loader(rows, recipe.seed, weights=mixed_by, rank=rank, world=world, **batch)

    facts: Facts = facts_of(
        model.model.config,  # pyright: ignore[reportArgumentType]
        rows.lengths,
        rows.source,
        next(model.model.parameters()).dtype,
        model.device,
        has_validation=data.validation is not None,
        count_steps=lambda mixed_by, batch: loader_for(mixed_by, batch).steps(recipe.train.epochs),
        groups=None if effective_mixing(recipe) is None else data.groups,
    )
    resolved = resolve(recipe, objective, data.limits, facts)
    batch = {**resolved.batch, "micro_batch_tokens": resolved.micro_batch_tokens}
    loader = loader_for(resolved.mixing or resolved.source_weights, batch)
    plan = Plan(
        recipe.train,
        resolved.steps,
        resolved.learning_rate,
        resolved.evaluate_every,
        resolved.save_every,
        resolved.step,
        resume_identity(recipe, resolved, rows.fingerprint, assets.identity, model.base_identity.exact),
        recipe.seed,
        resolved.head_learning_rate,
    )
    return resolved, loader, plan


def preflight(
    setup: TrainingSetup, run: Run, distributed: Distributed, reporter: Reporter, allowed: Collection[str]
) -> list[Finding]:
    """Check data and model with up to three training steps on a few rows, and undo them.

    Raises:
        CheckError: there is an error that is not allowed.
    """
    state, rows = setup.state, setup.data.encoded.rows
    fetch = setup.loader.__getitem__
    with reporter.phase(run, "preflight", Message("preflight check")):
        steps = preflight_steps(
            state.model, setup.loss_function, fetch, state, setup.plan, distributed, setup.compute_dtype
        )
        findings = [*setup.data.findings, *steps]
        if trains_untied_embedding(state.model):
            embedding = cast(torch.nn.Embedding, state.model.model.get_input_embeddings())
            findings.append(unused_tokens(rows, embedding.num_embeddings, setup.assets.tokenizer))
        if setup.assets.extension is not None:
            findings.append(new_tokens_in(rows, setup.assets.tokenizer))
    run.write("preflight.json", [x.as_json() for x in findings])
    reporter.show(findings)
    refuse(distributed.all_gather(findings), allowed)
    return findings


def cache_activations(
    setup: TrainingSetup, recipe: Recipe, distributed: Distributed, run: Run, reporter: Reporter
) -> tuple[Callable[[int], list[Batch]], Callable[[], None]]:
    """The loader, with the outputs of frozen layers where caching them pays; and what removes the cache in the end."""
    model, rows, setting = setup.state.model, setup.data.encoded.rows, recipe.train.activation_cache
    refusal = compatibility.activation_cache_refusal(recipe, setup.data.objective, distributed.world_size)
    first_epoch = setup.loader.epoch(0)
    epochs = setup.plan.steps * sum(map(len, first_epoch)) / max(len(first_epoch), 1) / len(rows)
    budget = 1e9 * (setting if isinstance(setting, float) else CACHE_GB)
    decision = activation_cache.recorded_decision(run)
    if decision is None and setting != "off":
        decision = activation_cache.choose_caching(model, rows, run.folder, budget, epochs, refusal)
    reporter.report(run, *([decision] if decision else []))
    return activation_cache.cached_fetch(decision, model, rows, run, reporter, setup.loader.__getitem__)


def make_scorer(model: TrainableModel, data: PreparedData, best_metric: str) -> Callable[[], dict[str, Score]]:
    """What the loop calls to validate: the loss, the metric that decides what is best, and the drift from the base.

    Args:
        model: while it still equals the base model.
        best_metric: decides which step is the best.
    """
    metrics, settings, validation = tuple(dict.fromkeys(("loss", best_metric))), data.evaluate, data.validation
    drift = Drift(model) if model.architecture.kind == "decoder" else None

    def score() -> dict[str, Score]:
        from_base = {"drift": drift(model)} if drift else {}
        if validation is None:
            return from_base
        measured = measure(model, data.objective, validation, metrics, settings.limit, int(settings.max_new_tokens))
        return measured.scores | from_base

    return score
