"""The whole trip on one page: the only file that knows every station.

open the Run -> read -> split -> encode -> load -> attach -> batch -> train -> evaluate -> report
"""

import hashlib
import json
import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import GenerationConfig, PreTrainedConfig

from weitiao.core import machine
from weitiao.core.errors import ModelError, RunError
from weitiao.core.example import Sourced, question_of
from weitiao.core.machine import Choice
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.packages import file_sha256
from weitiao.core.recipe import Recipe, Source
from weitiao.core.registry import find, names
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.tunable import TunableModel
from weitiao.data.encode import Encoded, encode
from weitiao.data.loader import Loader, in_order
from weitiao.data.processor import ChatProcessor
from weitiao.data.read import Reading, TooManyBadRows, read_sources, split
from weitiao.data.show import draw_row, supervised_share
from weitiao.data.template import read_template
from weitiao.deploy.adapter import is_adapter, load_adapter, read_adapter_config, save_adapter
from weitiao.deploy.merge import Merged
from weitiao.deploy.merge import merge as merge_into
from weitiao.evaluate.measure import HeldOut, Measured, closed_answers, default_metrics, measure, write
from weitiao.evaluate.report import write_report
from weitiao.model.bases import resolve_base
from weitiao.model.load import load_base, load_tokenizer
from weitiao.plan import resolve
from weitiao.train import checkpoint
from weitiao.train.distributed import Machines
from weitiao.train.loop import train as train_loop
from weitiao.train.plan import Plan, make_optimizer
from weitiao.train.progress import Progress
from weitiao.train.state import State, load_weights
from weitiao.train.stop import listening


@dataclass
class Desk:
    """What a command works with: where it prints, and the bar it shows for long work."""

    console: Console
    track: Callable[[Any, str], Any] = lambda items, words: items


@dataclass
class Tokens:
    """A base model's folder, tokenizer and processor."""

    folder: Path
    tokenizer: Any
    processor: ChatProcessor
    identity: str
    """sha256 of the tokenizer's file and of the template."""


@dataclass
class Prepared:
    """Encoded rows, and the held-out ones twice: while training, and for the last word."""

    train: Encoded
    validation: HeldOut | None
    final: HeldOut | None


def train(recipe: Recipe, desk: Desk, again: bool = False, replace_old: bool = False) -> Run:
    """Fine-tune. `again` goes on with an interrupted run.

    Raises:
        WeitiaoError: with a sentence that says what is wrong and what would be right.
    """
    run = Run.open(recipe.out) if again else Run.create(recipe, replace_old)
    device = machine.device()
    if recipe.train.threads != "auto":
        torch.set_num_threads(recipe.train.threads)
    machines = Machines(device)
    dtype, reason = machine.precision(recipe.train.precision)
    tell(run, desk, Choice("train.precision", str(dtype).removeprefix("torch."), reason))
    run.add_to_plan(environment=machine.environment(), fingerprint=recipe.fingerprint)

    tokens = open_tokens(recipe.base, recipe.revision, recipe.template)
    objective, data = prepare(recipe, tokens, run, desk)

    before_model = psutil.Process().memory_info().rss
    torch.manual_seed(recipe.seed)
    model = load(tokens, recipe.method, objective, dtype, device, run, desk)
    loader, plan = batch(recipe, model, objective, data, machines, tokens, run, desk)

    scores = run.read("scores.json", {})
    if data.final and "before" not in scores:
        scores = {"before": final_scores(model, objective, data.final, recipe, run, desk, "before")}
        run.write("scores.json", scores)

    state = State(model, make_optimizer(model, plan))
    torch.manual_seed(recipe.seed)
    if again:
        resume_state(run, state, plan, desk)
    with listening() as stop, Progress(desk.console, plan.steps, state.step) as progress:
        run.listeners.append(progress)
        train_loop(
            model,
            objective,
            loader.__getitem__,
            state,
            plan,
            run,
            scorer(model, objective, data, recipe),
            machines,
            stop,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    run.note("memory", before_model_mb=round(before_model / 2**20, 1), peak_mb=round(peak, 1))

    load_weights(model, load_file(run.folder / "trained" / "weights.safetensors"))
    save_adapter(model.attachment, run.folder / "adapter", recipe.base)
    if data.final:
        scores["after"] = final_scores(model, objective, data.final, recipe, run, desk, "after")
        run.write("scores.json", scores)
    run.note("finished", step=state.step)
    write_report(run)
    return run


def resume(folder: str, desk: Desk) -> Run:
    """Go on with an interrupted run; it ends as it would have without the interruption, to the bit on a CPU."""
    run = Run.open(folder)
    if run.status == "finished":
        raise RunError(f"{folder} is finished already. Look at {run.folder}/report.html, or train with another out=...")
    return train(run.recipe.model_copy(update={"out": str(run.folder)}), desk, again=run.status != "new")


# -- the stops on the way ---------------------------------------------------------------------------------------------


def open_tokens(base: str, revision: str | None = None, template: str | None = None) -> Tokens:
    """Base model folder, tokenizer, template."""
    folder = resolve_base(base, revision)
    tokenizer = load_tokenizer(folder, read_template(template))
    stops: Any = (
        GenerationConfig.from_pretrained(folder).eos_token_id if (folder / "generation_config.json").exists() else []
    )
    processor = ChatProcessor.make(tokenizer, stops if isinstance(stops, list) else [stops])
    files = [
        file_sha256(folder / name) for name in ("tokenizer.json", "tokenizer_config.json") if (folder / name).exists()
    ]
    identity = hashlib.sha256(json.dumps([files, tokenizer.chat_template]).encode()).hexdigest()[:16]
    return Tokens(folder, tokenizer, processor, identity)


def prepare(recipe: Recipe, tokens: Tokens, run: Run, desk: Desk) -> tuple[Objective, Prepared]:
    """Read, split and encode; say what was found."""
    eats = recipe.objective.eats
    reading = read(recipe.data, eats, recipe, run, desk)
    if isinstance(recipe.validation, Source):
        training, held = reading.examples, read((recipe.validation,), eats, recipe, run, desk).examples
        how = f"from {recipe.validation.path}"
    else:
        training, held, how = split(reading.examples, recipe.validation)
    objective = recipe.objective.fit([x.example for x in training])
    tell(run, desk, Choice("validation", f"{len(held)} rows", how))
    config = PreTrainedConfig.get_config_dict(tokens.folder)[0]
    limit = config.get("max_position_embeddings") or config.get("n_positions")
    context, too_long = resolve.choose_context(recipe, limit), resolve.choose_too_long(recipe, objective)
    tell(run, desk, context, too_long)

    def encoded(examples: list[Sourced]) -> Encoded:
        return encode(examples, objective, tokens.processor, tokens.identity, context.value, too_long.value, desk.track)

    def held_out(examples: list[Sourced]) -> HeldOut | None:
        if not examples:
            return None
        rows, plain = encoded(examples).rows, [x.example for x in examples]
        return HeldOut(plain, lambda: in_order(rows, 2048), closed_answers(plain))

    made = encoded(training)
    write_bad_rows(run, [*reading.bad, *made.bad])
    show_data(made, recipe, tokens, run, desk)
    validation = held_out(held)
    final = recipe.evaluate.data
    last = held_out(read((final,), eats, recipe, run, desk).examples) if final else validation
    return objective, Prepared(made, validation, last)


def read(sources: tuple[Source, ...], eats: type, recipe: Recipe, run: Run, desk: Desk) -> Reading:
    """Read sources, saying which mapping was chosen; bad rows are written down even when they stop the run."""
    try:
        reading = read_sources(sources, eats, recipe.max_bad_rows)
    except TooManyBadRows as trouble:
        write_bad_rows(run, trouble.bad)
        raise
    for file, words in reading.mappings.items():
        tell(run, desk, Choice(f"columns of {file}", words, "found by looking at the first rows"))
    return reading


def write_bad_rows(run: Run, bad: list[Any]) -> None:
    if bad:
        run.write_lines("bad_rows.jsonl", [{**asdict(x.where), "reason": x.reason, "excerpt": x.excerpt} for x in bad])


def show_data(made: Encoded, recipe: Recipe, tokens: Tokens, run: Run, desk: Desk) -> None:
    """What carries loss: counts, and one row a source drawn with learnt tokens green."""
    rows = made.rows
    share = supervised_share(int(rows.supervised.sum()), int(rows.lengths.sum()))
    facts = {"rows": len(rows), "loss": share, "cut": made.cut, "dropped": made.dropped, "split": made.split}
    bad = len(run.read_lines("bad_rows.jsonl"))
    run.add_to_plan(data={**facts, "bad rows": bad, "fingerprint": rows.fingerprint})
    desk.console.print(
        f"[bold]{len(rows):,} rows[/], {share}" + (f"; {bad} bad rows in {run.folder}/bad_rows.jsonl" if bad else "")
    )
    for number, source in enumerate(recipe.data):
        mine = [i for i in range(min(len(rows), 10_000)) if rows.source[i] == number]
        if mine:
            desk.console.print(f"one row of {source.path} (green is learnt):", style="dim")
            desk.console.print(draw_row(rows[mine[0]], tokens.tokenizer))


def load(
    tokens: Tokens,
    method: Method,
    objective: Objective,
    dtype: torch.dtype,
    device: torch.device,
    run: Run | None,
    desk: Desk,
) -> TunableModel:
    """Base weights, method attached, heads made."""
    base = load_base(tokens.folder, dtype, device, method.load_options())
    attachment = method.attach(base.model)
    width = base.model.config.get_text_config().hidden_size  # pyright: ignore
    heads = torch.nn.ModuleDict(objective.heads(width)).to(device)
    if run is not None:
        tell(run, desk, *base.choices)
        count = sum(p.numel() for name, p in base.model.named_parameters() if name in attachment.trainable)
        whole = sum(p.numel() for p in base.model.parameters())
        run.add_to_plan(trainable=count, parameters=whole)
        desk.console.print(
            f"[bold]{method.name}[/] trains {count:,} of {whole:,} weights ({100 * count / whole:.2f} %)"
        )
    return TunableModel(base.model, attachment, tokens.processor, base.body, base.vocabulary, heads)


def batch(
    recipe: Recipe,
    model: TunableModel,
    objective: Objective,
    data: Prepared,
    machines: Machines,
    tokens: Tokens,
    run: Run,
    desk: Desk,
) -> tuple[Loader, Plan]:
    """The loader and the plan, every `auto` resolved and said."""
    rows, settings = data.train.rows, recipe.train
    weights = tuple(source.weight for source in recipe.data)
    epoch_tokens = int(sum(weights[s] * n for s, n in zip(rows.source, rows.lengths)))
    facts = resolve.model_facts(model.model.config, rows.lengths, epoch_tokens)
    size = resolve.choose_batch(recipe, facts)
    micro = resolve.choose_micro(recipe, facts, model.device, next(model.model.parameters()).dtype)
    loader = Loader(rows, recipe.seed, weights=weights, rank=machines.rank, world=machines.world)
    loader = replace(loader, **{size.key.removeprefix("train."): size.value})
    loader.micro_tokens = None if objective.couples_rows else micro.value
    steps = settings.steps or loader.steps(settings.epochs)
    why = "asked for" if settings.steps else f"{settings.epochs:g} epochs of {len(loader.epoch(0))} steps"
    rate = resolve.choose_learning_rate(recipe, recipe.method)
    evaluate_every, save_every = resolve.choose_rhythm(recipe, steps, data.validation is not None)
    tell(run, desk, size, micro, Choice("train.steps", steps, why), rate, evaluate_every, save_every)
    wishes = {part.step for part in (recipe.method, objective)} - {"accumulate"}
    if len(wishes) > 1:
        raise RunError(f"the method and the objective want different ways to take a step: {', '.join(sorted(wishes))}.")
    identity = {
        "data": rows.fingerprint,
        "tokenizer and template": tokens.identity,
        size.key: str(size.value),
        "steps": str(steps),
    }
    identity |= {
        "method": json.dumps(recipe.method.as_recipe()),
        "optimizer": json.dumps(settings.optimizer.as_recipe()),
    }
    step = wishes.pop() if wishes else "accumulate"
    return loader, Plan(settings, steps, rate.value, evaluate_every.value, save_every.value, step, identity)


def resume_state(run: Run, state: State, plan: Plan, desk: Desk) -> None:
    """Load the newest sound State; a run that was stopped before its first State begins anew."""
    folder = run.folder / "states"
    if checkpoint.newest_first(folder):
        checkpoint.load_newest(
            folder, state, plan.identity, lambda words: desk.console.print(words, style="bold yellow")
        )
    run.rewind(state.step)
    run.note("resumed", step=state.step)
    desk.console.print(f"going on from step {state.step}")


def scorer(model: TunableModel, objective: Objective, data: Prepared, recipe: Recipe) -> Callable[[], dict[str, Score]]:
    """What `train` calls to validate: the loss, and the metric that decides what is best."""
    wanted = tuple(dict.fromkeys(("loss", recipe.train.best)))
    settings = recipe.evaluate

    def score() -> dict[str, Score]:
        if data.validation is None:
            return {}
        return measure(model, objective, data.validation, wanted, settings.limit, settings.max_new_tokens).scores

    return score


def final_scores(
    model: TunableModel, objective: Objective, held_out: HeldOut, recipe: Recipe, run: Run, desk: Desk, when: str
) -> dict[str, Any]:
    """All metrics, and sample answers into samples.jsonl."""
    settings = recipe.evaluate
    wanted = default_metrics(objective, held_out) if settings.metrics == "auto" else settings.metrics
    track = lambda items, words: desk.track(items, f"{when}: {words}")  # noqa: E731
    measured = measure(model, objective, held_out, wanted, settings.limit, settings.max_new_tokens, track)
    add_samples(model, held_out, settings.samples, settings.max_new_tokens, measured, run, when)
    return {name: score.as_json() for name, score in measured.scores.items()}


def add_samples(
    model: TunableModel, held_out: HeldOut, count: int, room: int, measured: Measured, run: Run, when: str
) -> None:
    """The same prompts, answered before and after, side by side in one file."""
    chosen = held_out.examples[:count]
    answers = measured.written[:count] if len(measured.written) >= len(chosen) else write(model, chosen, room)
    old = run.read_lines("samples.jsonl")
    lines = []
    for i, (example, answer) in enumerate(zip(chosen, answers)):
        line = (
            old[i]
            if i < len(old)
            else {"prompt": question_of(example)[:1000], "reference": getattr(example, "answer", "")}
        )
        lines.append({**line, when: answer})
    run.write_lines("samples.jsonl", lines)


def tell(run: Run, desk: Desk, *choices: Choice) -> None:
    """Print what was chosen, with the reason, and write it into the Run."""
    run.chose(*choices)
    for choice in choices:
        if choice.reason != "asked for":
            desk.console.print(f"[cyan]{choice.key}[/] = {choice.value}  [dim]({choice.reason})[/]", highlight=False)


# -- after training ---------------------------------------------------------------------------------------------------


@dataclass
class Opened:
    """A model to use: from a Run, a PEFT adapter or a base."""

    model: TunableModel
    tokens: Tokens
    objective: Objective
    recipe: Recipe | None = None


def open_model(target: str, desk: Desk, base: str | None = None, precision: str = "", tuned: bool = True) -> Opened:
    """A Run folder, a PEFT adapter folder (its base named by its config or by `base`), or any base model.

    Raises:
        ModelError, RunError: it is none of these, or the run has no result yet.
    """
    folder, device = Path(target), machine.device()
    recipe = Run.open(folder).recipe if (folder / "recipe.yaml").is_file() else None
    dtype = machine.precision(precision or (recipe.train.precision if recipe else "auto"))[0]
    if recipe is not None:
        weights = folder / "trained" / "weights.safetensors"
        if tuned and not weights.is_file():
            raise RunError(
                f"{target} has no result yet ({Run(folder).status}). Go on with: weitiao train --resume {target}"
            )
        tokens = open_tokens(base or recipe.base, recipe.revision, recipe.template)
        model = load(tokens, recipe.method, recipe.objective, dtype, device, None, desk)
        if tuned:
            load_weights(model, load_file(weights))
        return Opened(model, tokens, recipe.objective, recipe)
    objective = find("objective", "sft")()
    if is_adapter(folder):
        config = read_adapter_config(folder)
        tokens = open_tokens(base or config["base_model_name_or_path"])
        method = method_of(config)
        model = load(tokens, method, objective, dtype, device, None, desk)  # pyright: ignore
        load_adapter(model.attachment, folder)
        return Opened(model, tokens, objective)  # pyright: ignore
    tokens = open_tokens(base or target)
    model = load(tokens, find("method", "full")(), objective, dtype, device, None, desk)  # pyright: ignore
    return Opened(model, tokens, objective)  # pyright: ignore


def method_of(config: dict[str, Any]) -> Method:
    """The method that a PEFT adapter's config describes."""
    for name in names("method"):
        method = find("method", name).from_peft_config(config)  # pyright: ignore[reportAttributeAccessIssue]
        if method is not None:
            return method
    raise ModelError(f"no method here reads PEFT adapters of type {config.get('peft_type')}.")


def evaluate(
    target: str, desk: Desk, data: str | None, metrics: tuple[str, ...], limit: int | None
) -> dict[str, Score]:
    """Measure a run (or any model) on its held-out rows, or on `data`."""
    opened = open_model(target, desk)
    recipe = opened.recipe
    if recipe is None and data is None:
        raise RunError("a model without a run has no held-out rows of its own: name them with --data FILE.")
    sources = (Source(path=data),) if data else None
    if sources is None and recipe is not None:
        sources = (recipe.evaluate.data,) if recipe.evaluate.data else None
    if sources is not None:
        examples = read_sources(sources, opened.objective.eats, 1.0).examples
    elif isinstance(recipe.validation, Source):  # pyright: ignore[reportOptionalMemberAccess]
        examples = read_sources((recipe.validation,), opened.objective.eats, 1.0).examples  # pyright: ignore
    else:
        examples = split(read_sources(recipe.data, opened.objective.eats, 1.0).examples, recipe.validation)[1]  # pyright: ignore
    plain = [x.example for x in examples]
    context = resolve.LONGEST_BY_DEFAULT
    rows = encode(examples, opened.objective, opened.tokens.processor, opened.tokens.identity, context, "cut").rows
    held_out = HeldOut(plain, lambda: in_order(rows, 2048), closed_answers(plain))
    wanted = metrics or default_metrics(opened.objective, held_out)
    return measure(opened.model, opened.objective, held_out, wanted, limit, progress=desk.track).scores


def merge(target: str, out: str, desk: Desk) -> Merged:
    """Fold a run's or an adapter's weights into the base: a folder that plain AutoModel opens."""
    opened = open_model(target, desk, precision="fp32")
    return merge_into(opened.model, opened.tokens.tokenizer, Path(out))
