"""Every `auto` of a recipe becomes a number, with its reason: nothing is chosen silently.

resolve_rows   before the rows are encoded      recipe, objective, the model's limit     -> RowLimits
resolve        when rows and model are known    recipe, RowLimits, Facts                 -> Resolved
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from weitiao.core.errors import RecipeError
from weitiao.core.example import Chat
from weitiao.core.finding import Decision
from weitiao.core.hardware import NARROW
from weitiao.core.messages import Message, joined
from weitiao.core.mixing import Groups
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.plan.compatibility import choose_step
from weitiao.plan.mixing import Shares, choose_shares, size_groups

DEFAULT_MAX_LENGTH = 4096
GOOD_STEPS = 100  # fewer optimizer steps than this leave the schedule no room
MIN_BATCH_TOKENS, MAX_BATCH_TOKENS = 1024, 16384
CPU_TOKENS, CPU_TOKENS_BF16 = 1024, 1536  # enough for a CPU's matrix products to run at full speed
NARROW_TOKENS = 4096  # for narrow layers, whose overhead a call counts more than their arithmetic
GPU_TOKENS = (1024, 32768)
ACTIVATIONS = 12  # tensors of the layer's width that one layer keeps for the backward pass, besides 4 of the MLP's


@dataclass(frozen=True)
class RowLimits:
    """What encoding needs to know."""

    max_length: int
    overlong: str
    decisions: tuple[Decision, ...]


@dataclass(frozen=True)
class Facts:
    """What the values follow from: rows, model and machine."""

    lengths: np.ndarray
    """Tokens of each training row."""
    source: np.ndarray
    """Number of each row's source."""
    num_layers: int
    width: int
    mlp_width: int
    dtype: torch.dtype
    """Of the activations."""
    device: torch.device
    has_validation: bool
    count_steps: Callable[[tuple[float, ...] | Shares, dict[str, int]], int]
    """(weights of the sources, or shares; {batch_size or batch_tokens: n}) -> optimizer steps in train.epochs."""
    groups: Groups | None = None
    """What the recipe mixes by shares; None: nothing."""


@dataclass(frozen=True)
class Resolved:
    """What a run trains with. resolved.json holds it, with the decisions behind it."""

    max_length: int
    overlong: str
    batch: dict[str, int]
    """{batch_size: rows} or {batch_tokens: tokens} an optimizer step."""
    micro_batch_tokens: int | None
    """Tokens that run at once; None: the rows of a step depend on one another, and run together."""
    steps: int
    learning_rate: float
    head_learning_rate: float | None
    """None: the same as all other weights."""
    evaluate_every: int
    """0: only at the end."""
    save_every: int
    gradient_checkpointing: bool
    source_weights: tuple[float, ...]
    """How often each source's rows are used an epoch."""
    step: str
    """The file in train/steps/ that computes the gradients."""
    decisions: tuple[Decision, ...]
    mixing: Shares | None = None
    """Shares of all tokens; then the weights are not used."""

    def values(self) -> dict[str, Any]:
        """As plain numbers and names, without the decisions."""
        values = {key: value for key, value in asdict(self).items() if key not in ("decisions", "mixing")}
        return values if self.mixing is None else {**values, "mixing": asdict(self.mixing)}


def resolve_rows(recipe: Recipe, objective: Objective, limit: int | None) -> RowLimits:
    """How long rows may be, and what is done with longer ones.

    Args:
        limit: tokens that the model takes; None: it names no limit.

    Raises:
        RecipeError: the objective's rows cannot be split.
    """
    max_length, overlong = choose_max_length(recipe, limit), choose_overlong(recipe, objective)
    return RowLimits(max_length.value, overlong.value, (max_length, overlong))


def resolve(recipe: Recipe, objective: Objective, limits: RowLimits, facts: Facts) -> Resolved:
    """Every automatic value as a number.

    Args:
        objective: fitted to the data.

    Raises:
        RecipeError: method and objective need different steps.
    """
    shares: Shares | None = None
    if facts.groups is None:
        weights, mixing = choose_source_weights(recipe, facts)
        epoch_tokens = int(sum(weights[s] * n for s, n in zip(facts.source, facts.lengths)))
        batch = choose_batch(recipe, epoch_tokens, int(facts.lengths.max()))
    else:
        weights = ()
        sized = size_groups(recipe, facts.groups, facts.lengths)
        batch = choose_batch(recipe, int(sized.epoch_tokens), int(facts.lengths.max()))
        shares, decision = choose_shares(recipe, sized, {batch.key.removeprefix("train."): int(batch.value)})
        mixing = [decision]
    batch_value = {batch.key.removeprefix("train."): int(batch.value)}
    micro_batch = choose_micro_batch(recipe, facts)
    checkpointing = choose_gradient_checkpointing(recipe)
    steps = choose_steps(recipe, lambda: facts.count_steps(shares or weights, batch_value))
    rate, head_rate = choose_learning_rate(recipe), objective.choose_head_rate()
    evaluate_every, save_every = choose_intervals(recipe, steps.value, facts.has_validation)
    decisions = [*limits.decisions, *mixing, batch, micro_batch, steps, rate, evaluate_every, save_every, checkpointing]
    decisions += [choose_guard(recipe), *([head_rate] if head_rate else [])]
    return Resolved(
        limits.max_length,
        limits.overlong,
        batch_value,
        None if objective.traits.batch_coupled else micro_batch.value,
        steps.value,
        float(rate.value),
        None if head_rate is None else float(head_rate.value),
        evaluate_every.value,
        save_every.value,
        checkpointing.value == "on",
        weights,
        choose_step(recipe.method, objective),
        tuple(decisions),
        shares,
    )


def facts_of(
    config: PretrainedConfig, lengths: np.ndarray, source: np.ndarray, dtype: torch.dtype, device: torch.device, **more: Any
) -> Facts:
    """Facts of the rows and of a transformers config."""
    text = config.get_text_config()
    width = text.hidden_size
    mlp_width = getattr(text, "intermediate_size", None) or 4 * width
    return Facts(lengths, source, text.num_hidden_layers, width, mlp_width, dtype, device, **more)


# -- one value each -------------------------------------------------------------------------------------------------------


def choose_max_length(recipe: Recipe, limit: int | None) -> Decision:
    """The longest row in tokens."""
    if recipe.max_length != "auto":
        return Decision.from_recipe("max_length", recipe.max_length)
    if limit is None:
        return Decision("max_length", DEFAULT_MAX_LENGTH, Message("the model names no limit"))
    return Decision(
        "max_length",
        min(limit, DEFAULT_MAX_LENGTH),
        Message(
            "the model takes {limit:,} tokens; more than {default:,} only if the recipe says so",
            limit=limit,
            default=DEFAULT_MAX_LENGTH,
        ),
    )


def choose_overlong(recipe: Recipe, objective: Objective) -> Decision:
    """What is done with rows that are longer."""
    if recipe.overlong == "split" and not objective.traits.splittable:
        raise RecipeError(
            "overlong: {objective} has one target for a whole row, so a row cannot be split. Use truncate, drop or error.",
            objective=objective.name,
        )
    if recipe.overlong == "drop_turns" and not any(x.traits.example_type is Chat for x in objective.parts().values()):
        raise RecipeError(
            "overlong: drop_turns is for conversations (objective sft); {objective} has none. Use {known}.",
            objective=objective.name,
            known="truncate, split or drop" if objective.traits.splittable else "truncate or drop",
        )
    if recipe.overlong != "auto":
        return Decision.from_recipe("overlong", recipe.overlong)
    return Decision("overlong", objective.traits.overlong, objective.traits.overlong_reason)


def choose_source_weights(recipe: Recipe, facts: Facts) -> tuple[tuple[float, ...], list[Decision]]:
    """How often each source's rows are used an epoch; what is replayed makes up its fraction of all tokens."""
    weights, decisions = _weights_of_tasks(recipe, facts.source)
    if recipe.replay is None:
        return weights, decisions
    tokens = [int(facts.lengths[facts.source == number].sum()) for number in range(len(weights) + 1)]
    fraction, replayed = recipe.replay.fraction, max(tokens[-1], 1)
    times = fraction / (1 - fraction) * sum(w * n for w, n in zip(weights, tokens)) / replayed
    reason = Message(
        "{fraction:.0%} of all tokens; its {tokens:,} tokens are used {times:.2g} times an epoch",
        fraction=fraction,
        tokens=tokens[-1],
        times=times,
    )
    return (*weights, times), [*decisions, Decision("replay", recipe.replay.path, reason)]


def _weights_of_tasks(recipe: Recipe, source: np.ndarray) -> tuple[tuple[float, ...], list[Decision]]:
    """By the sources' own weights, and by how the objective samples tasks."""
    rows: dict[str, int] = {}
    for number, x in enumerate(recipe.data):
        rows[x.task] = rows.get(x.task, 0) + round(x.weight * int((source == number).sum()))
    times = recipe.objective.epoch_weights(rows)
    weights = tuple(x.weight * times.get(x.task, 1.0) for x in recipe.data)
    if not times:
        return weights, []
    each = [Message("{task}: {times:.2g} x {rows:,} rows", task=x, times=n, rows=rows[x]) for x, n in times.items()]
    reason = Message("by objective.temperature; {tasks}", tasks=joined(", ", each))
    return weights, [Decision("data.task_weights", {task: round(n, 4) for task, n in times.items()}, reason)]


def choose_batch(recipe: Recipe, epoch_tokens: int, longest_row: int) -> Decision:
    """Rows or tokens an optimizer step."""
    train = recipe.train
    if train.batch_size is not None:
        return Decision.from_recipe("train.batch_size", train.batch_size)
    if train.batch_tokens != "auto":
        return Decision.from_recipe("train.batch_tokens", train.batch_tokens)
    tokens = max(int(epoch_tokens * train.epochs / GOOD_STEPS), 1)
    power_of_two = 1 << tokens.bit_length() - 1
    reason = Message(
        "{tokens:,} tokens x {epochs:g} epochs in about {steps} steps; {low:,} to {high:,}",
        tokens=epoch_tokens,
        epochs=train.epochs,
        steps=GOOD_STEPS,
        low=MIN_BATCH_TOKENS,
        high=MAX_BATCH_TOKENS,
    )
    chosen = max(MIN_BATCH_TOKENS, min(MAX_BATCH_TOKENS, power_of_two), longest_row)
    return Decision("train.batch_tokens", chosen, reason)


def choose_micro_batch(recipe: Recipe, facts: Facts) -> Decision:
    """Tokens that run at once; the rest of a step is accumulated, exactly."""
    key = "train.micro_batch_tokens"
    if recipe.train.micro_batch_tokens != "auto":
        return Decision.from_recipe(key, recipe.train.micro_batch_tokens)
    bytes_a_number = facts.dtype.itemsize
    if facts.device.type != "cuda":
        if facts.width < NARROW:
            return Decision(
                key,
                NARROW_TOKENS,
                Message(
                    "layers of width {width} are narrow: the overhead of a call costs more than its arithmetic",
                    width=facts.width,
                ),
            )
        return Decision(
            key,
            CPU_TOKENS_BF16 if bytes_a_number < 4 else CPU_TOKENS,
            Message("a CPU's matrix products run at full speed from about 1,000 rows on"),
        )
    free = torch.cuda.mem_get_info(facts.device)[0]
    per_token = (ACTIVATIONS * facts.width + 4 * facts.mlp_width) * bytes_a_number  # of one layer
    if choose_gradient_checkpointing(recipe).value == "on":
        per_token += facts.num_layers * facts.width * bytes_a_number  # one layer at a time, and every layer's input
    else:
        per_token *= facts.num_layers
    low, high = GPU_TOKENS
    chosen = max(low, min(high, int(0.5 * free / per_token) // 1024 * 1024))
    reason = Message(
        "half of {free:.0f} GB free memory at about {per_token:.1f} MB a token", free=free / 1e9, per_token=per_token / 1e6
    )
    return Decision(key, chosen, reason)


def choose_gradient_checkpointing(recipe: Recipe) -> Decision:
    """Whether layers are computed again in the backward pass."""
    if recipe.train.gradient_checkpointing != "auto":
        return Decision.from_recipe("train.gradient_checkpointing", recipe.train.gradient_checkpointing)
    return Decision(
        "train.gradient_checkpointing",
        "off",
        Message("it would take about a third more time; train.micro_batch_tokens bounds the memory"),
    )


def choose_steps(recipe: Recipe, steps_of_epochs: Callable[[], int]) -> Decision:
    """Optimizer steps."""
    if recipe.train.steps is not None:
        return Decision.from_recipe("train.steps", recipe.train.steps)
    return Decision(
        "train.steps", steps_of_epochs(), Message("{epochs:g} passes over the rows", epochs=recipe.train.epochs)
    )


def choose_learning_rate(recipe: Recipe) -> Decision:
    """Peak learning rate."""
    if recipe.train.learning_rate != "auto":
        return Decision.from_recipe("train.learning_rate", recipe.train.learning_rate)
    return Decision("train.learning_rate", recipe.method.learning_rate, recipe.method.learning_rate_reason)


def choose_intervals(recipe: Recipe, steps: int, has_validation: bool) -> Sequence[Decision]:
    """Steps between validations, and between checkpoints."""
    tenth = Message("a tenth of {steps:,} steps" if steps >= 10 else "at each of {steps} steps", steps=steps)
    every = max(1, steps // 10)
    if recipe.train.evaluate_every != "auto":
        evaluate = Decision.from_recipe("train.evaluate_every", recipe.train.evaluate_every)
    elif has_validation:
        evaluate = Decision("train.evaluate_every", every, tenth)
    else:
        evaluate = Decision("train.evaluate_every", 0, Message("no row is held out"))
    if recipe.train.save_every != "auto":
        save = Decision.from_recipe("train.save_every", recipe.train.save_every)
    elif evaluate.value:
        save = Decision("train.save_every", evaluate.value, Message("at every validation"))
    else:
        save = Decision("train.save_every", every, tenth)
    return evaluate, save


def choose_guard(recipe: Recipe) -> Decision:
    """Whether unsound steps are skipped."""
    if recipe.train.guard == "off":
        return Decision.from_recipe("train.guard", "off")
    return Decision("train.guard", "on", Message("non-finite steps and far outliers are skipped and reported"))
