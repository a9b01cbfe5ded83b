"""`auto` becomes a number, with its reason. Nothing is chosen silently."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weitiao.core.architecture import Architecture
from weitiao.core.errors import RecipeError
from weitiao.core.finding import Decision
from weitiao.core.hardware import NARROW
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.registry import find, names

LONGEST_BY_DEFAULT = 4096
GOOD_STEPS = 100  # fewer optimizer steps than this and the schedule has no room


@dataclass(frozen=True)
class Facts:
    """What the choices are made from."""

    tokens: int
    """In one epoch of the training rows."""
    longest: int
    """Tokens of the longest row."""
    layers: int
    width: int
    middle: int
    """Width inside the MLP."""


def choose_max_length(recipe: Recipe, limit: int | None) -> Decision:
    """Longest row in tokens. `limit` is what the model was made for."""
    if recipe.max_length != "auto":
        return Decision.from_recipe("max_length", recipe.max_length)
    if limit is None:
        return Decision("max_length", LONGEST_BY_DEFAULT, "the model names no limit")
    chosen = min(limit, LONGEST_BY_DEFAULT)
    return Decision("max_length", chosen, f"the model takes {limit:,}; more than {LONGEST_BY_DEFAULT:,} only when asked")


def choose_overlong(recipe: Recipe, objective: Objective) -> Decision:
    if recipe.overlong == "split" and not objective.traits.splittable:
        words = f"{objective.name} learns something of a whole row, which its pieces would not have"
        raise RecipeError(f"overlong: {words}; write cut, drop or refuse.")
    if recipe.overlong != "auto":
        return Decision.from_recipe("overlong", recipe.overlong)
    return Decision("overlong", objective.traits.overlong, objective.traits.overlong_reason)


def choose_learning_rate(recipe: Recipe, method: Method) -> Decision:
    if recipe.train.learning_rate != "auto":
        return Decision.from_recipe("train.learning_rate", recipe.train.learning_rate)
    return Decision("train.learning_rate", method.learning_rate, method.learning_rate_reason)


def choose_batch(recipe: Recipe, facts: Facts) -> Decision:
    """Rows or tokens an optimizer step."""
    if recipe.train.batch_size is not None:
        return Decision.from_recipe("train.batch_size", recipe.train.batch_size)
    if recipe.train.batch_tokens != "auto":
        return Decision.from_recipe("train.batch_tokens", recipe.train.batch_tokens)
    wanted = int(facts.tokens * recipe.train.epochs / GOOD_STEPS)
    chosen = max(1024, min(16384, 1 << max(wanted, 1).bit_length() - 1), facts.longest)
    reason = f"{facts.tokens:,} tokens x {recipe.train.epochs:g} epochs in about {GOOD_STEPS} steps; 1,024 to 16,384"
    return Decision("train.batch_tokens", chosen, reason)


def choose_micro_batch(recipe: Recipe, facts: Facts, device: torch.device, dtype: torch.dtype) -> Decision:
    """Tokens that run at once."""
    if recipe.train.micro_batch_tokens != "auto":
        return Decision.from_recipe("train.micro_batch_tokens", recipe.train.micro_batch_tokens)
    if device.type != "cuda":
        if facts.width < NARROW:
            return Decision(
                "train.micro_batch_tokens", 4096, f"few at once would waste time: layers of {facts.width} are narrow"
            )
        half = dtype.itemsize < 4
        room = "; in bf16 more have room" if half else ""
        words = f"a CPU's matrix products are at full speed from about 1,000 rows on{room}"
        return Decision("train.micro_batch_tokens", 1536 if half else 1024, words)
    free, _ = torch.cuda.mem_get_info(device)
    each = (12 * facts.width + 4 * facts.middle) * dtype.itemsize  # what a layer keeps for a token
    if choose_gradient_checkpointing(recipe).value == "on":
        each += facts.layers * facts.width * dtype.itemsize  # one layer at a time, and what every layer is given
    else:
        each *= facts.layers
    chosen = max(1024, min(32768, int(0.5 * free / each) // 1024 * 1024))
    return Decision(
        "train.micro_batch_tokens", chosen, f"half of {free / 1e9:.0f} GB free at about {each / 1e6:.1f} MB a token"
    )


def choose_gradient_checkpointing(recipe: Recipe) -> Decision:
    """Whether layers run once more in the backward pass (gradient checkpointing)."""
    if recipe.train.gradient_checkpointing != "auto":
        return Decision.from_recipe("train.gradient_checkpointing", recipe.train.gradient_checkpointing)
    return Decision(
        "train.gradient_checkpointing",
        "off",
        "gradient checkpointing costs about a third more time; micro_tokens bounds memory",
    )


def refuse_base(objective: Objective, method: Method, architecture: Architecture) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: objective, method and base model do not go together.
    """
    refuse_encoder(objective, architecture)
    refuse_decoder(objective, architecture)
    refuse_encoder_decoder(objective, method, architecture)


def refuse_encoder(objective: Objective, architecture: Architecture) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: the objective needs a model that writes; what an encoder can learn is named.
    """
    if architecture.kind == "encoder" and objective.traits.generative:
        able = [name for name in names(Objective) if not find(Objective, name).default_traits.generative]
        words = f"{objective.name} needs a model that writes, and the base is an encoder ({architecture.model_type})"
        raise RecipeError(f"objective: {words}. It can learn: {', '.join(able)}.")


def refuse_metrics(objective: Objective, wanted: Sequence[str], best: str = "loss") -> None:
    """What a head says is judged by the objective's own metrics: others would compare what cannot be compared.

    Args:
        best: what decides which state is the result; of several tasks it names one.

    Raises:
        RecipeError: a metric is not among them.
    """
    parts = objective.parts()
    known = [
        f"{task}.{name}" if task else name
        for task, part in parts.items()
        for name in (*part.traits.metrics, *part.traits.optional_metrics)
    ]
    own = ("loss", *known, *(name.rpartition(".")[2] for name in known))
    if len(parts) > 1 and best != "loss" and "." not in best:
        raise RecipeError(f"train.best_metric: {best} of which task? Write task.{best}, one of: {', '.join(known)}.")
    wanted = (best, *wanted)
    strange = [name for name in wanted if name not in own]
    if strange and all(part.traits.has_predict or not part.traits.generative for part in parts.values()):
        words = f"{strange[0]} does not fit objective: {objective.name}"
        raise RecipeError(f"evaluate.metrics, train.best_metric: {words}. Its metrics: {', '.join(known)}.")


def refuse_regularizers(recipe: Recipe) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: one cannot join this objective or method, or needs each batch's rows apart.
    """
    if recipe.regularizers and len(recipe.objective.parts()) > 1:
        raise RecipeError(f"regularizers: each changes the loss of one task, and {recipe.objective.name} has several.")
    if recipe.regularizers and recipe.objective.traits.step != "accumulate":
        words = f"{recipe.objective.name} takes its steps in its own way ({recipe.objective.traits.step})"
        raise RecipeError(f"regularizers: {words}, which would pass over them.")
    asking = [x.name for x in recipe.regularizers if x.uses_log_probs]
    for part in recipe.regularizers:
        if part.swaps_weights and choose_gradient_checkpointing(recipe).value == "on":
            words = "runs layers once more, when the weights are others again; leave train.gradient_checkpointing off"
            raise RecipeError(f"regularizers: {part.name}: gradient checkpointing {words}.")
        if part.swaps_weights and asking:
            words = f"puts other weights in place for the loss alone, and {asking[0]} would compare what no model says"
            raise RecipeError(f"regularizers: {part.name}: it {words}; take one of them.")
        if refusal := part.refusal(recipe.objective, recipe.method):
            raise RecipeError("regularizers: {name}: {refusal}", name=part.name, refusal=refusal)


def refuse_decoder(objective: Objective, architecture: Architecture) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: the objective needs an encoder; what such a model can learn is named.
    """
    if objective.traits.needs_mlm_head and architecture.kind != "encoder":
        able = [name for name in names(Objective) if not find(Objective, name).default_traits.needs_mlm_head]
        words = f"{objective.name} needs an encoder (BERT and its kind), and the base is a model that writes"
        raise RecipeError(f"objective: {words}. It can learn: {', '.join(able)}; plain text with causal_lm.")


def refuse_encoder_decoder(objective: Objective, method: Method, architecture: Architecture) -> None:
    """Before anything is loaded.

    Raises:
        RecipeError: the objective or the method is not for such a model, or only for such a one.
    """
    encoder_decoder = architecture.kind == "encoder_decoder"
    able = [name for name in names(Objective) if find(Objective, name).default_traits.needs_encoder_decoder]
    if encoder_decoder and not objective.traits.needs_encoder_decoder:
        words = f"{objective.name} is not for a model with an encoder and a decoder (T5, BART and their kind)"
        raise RecipeError(f"objective: {words}. It can learn: {', '.join(able)}.")
    if objective.traits.needs_encoder_decoder and not encoder_decoder:
        words = f"{objective.name} needs a model with an encoder and a decoder (T5, BART and their kind)"
        raise RecipeError(f"objective: {words}; a model that only writes learns the same with sft.")
    if encoder_decoder and not method.encoder_decoder:
        raise RecipeError(f"method: {method.name} is not made for models with an encoder and a decoder; lora is.")


def check_room_for_virtual_tokens(virtual_tokens: int, longest: int, limit: int | None) -> None:
    """Soft prompts and prefixes take places of the context.

    Raises:
        RecipeError: with them the longest row is longer than what the model takes.
    """
    if virtual_tokens and limit is not None and virtual_tokens + longest > limit:
        raise RecipeError(
            f"method.length: {virtual_tokens} places before every row and rows of up to {longest} tokens are more than the {limit} "
            f"that the model takes. At most {max(0, limit - longest)} are left; or cut the rows with a smaller context."
        )


def choose_weights(recipe: Recipe, source: Any, lengths: Any) -> tuple[tuple[float, ...], list[Decision]]:
    """How often each source's rows are used an epoch; what is replayed makes up its share of all tokens.

    Args:
        source, lengths: of every row.
    """
    weights, told = _of_tasks(recipe, source)
    if recipe.replay is None:
        return weights, told
    tokens = [int(lengths[source == number].sum()) for number in range(len(weights) + 1)]
    share = recipe.replay.fraction
    wanted = share / (1 - share) * sum(w * n for w, n in zip(weights, tokens))
    times = wanted / max(tokens[-1], 1)
    reason = f"{share:.0%} of all tokens; its {tokens[-1]:,} tokens are used {times:.2g} times an epoch"
    return (*weights, times), [*told, Decision("replay", recipe.replay.path, reason)]


def _of_tasks(recipe: Recipe, source: Any) -> tuple[tuple[float, ...], list[Decision]]:
    """How often each source's rows are used, by their own weights and by what their tasks make of them."""
    rows: dict[str, int] = {}
    for number, x in enumerate(recipe.data):
        rows[x.task] = rows.get(x.task, 0) + round(x.weight * int((source == number).sum()))
    often = recipe.objective.epoch_weights(rows)
    weights = tuple(x.weight * often.get(x.task, 1.0) for x in recipe.data)
    words = ", ".join(f"{task} {times:.2g} x {rows[task]:,}" for task, times in often.items())
    return weights, [Decision("rows of each task an epoch", words, "by objective.temperature")] if often else []


def choose_steps(recipe: Recipe, of_epochs: int) -> Decision:
    if recipe.train.steps is not None:
        return Decision.from_recipe("train.steps", recipe.train.steps)
    return Decision("train.steps", of_epochs, f"{recipe.train.epochs:g} times through the rows")


def activation_cache_refusal(recipe: Recipe, objective: Objective, distributed: int) -> str:
    """Why what frozen layers give cannot be kept for the next epoch; "": it can."""
    if distributed > 1:
        return "each of several machines would run all rows"
    if any(part.traits.dynamic_masking or part.traits.repacks_segments for part in objective.parts().values()):
        return f"{objective.name} shows them other tokens each time"
    at = [part.name for part in recipe.regularizers if part.changes_embeddings]
    return f"{at[0]} changes what they are given" if at else ""


def choose_step(method: Method, objective: Objective) -> str:
    """The one way to take a step that both can live with.

    Raises:
        RecipeError: they want two different ones.
    """
    wishes = sorted({method.step, objective.traits.step} - {"accumulate"})
    if len(wishes) > 1:
        raise RecipeError(f"{method.name} and {objective.name} want different ways to take a step ({', '.join(wishes)}).")
    return wishes[0] if wishes else "accumulate"


def choose_guard(recipe: Recipe) -> Decision:
    if recipe.train.guard == "off":
        return Decision.from_recipe("train.guard", "off")
    return Decision("train.guard", "on", "steps that are not finite or far outliers are skipped and reported")


def choose_intervals(recipe: Recipe, steps: int, eval_set: bool) -> list[Decision]:
    """How often to validate and to save."""
    tenth = Message("a tenth of {steps:,} steps" if steps >= 10 else "at each of {steps} steps", steps=steps)
    every = max(1, steps // 10)
    if recipe.train.evaluate_every != "auto":
        evaluate = Decision.from_recipe("train.evaluate_every", recipe.train.evaluate_every)
    elif eval_set:
        evaluate = Decision("train.evaluate_every", every, tenth)
    else:
        evaluate = Decision("train.evaluate_every", 0, "nothing is held out")
    if recipe.train.save_every != "auto":
        save = Decision.from_recipe("train.save_every", recipe.train.save_every)
    elif evaluate.value:
        save = Decision("train.save_every", evaluate.value, "at every validation")
    else:
        save = Decision("train.save_every", every, tenth)
    return [evaluate, save]


def model_facts(config: Any, lengths: Any, epoch_tokens: int) -> Facts:
    """Facts from a transformers config and the rows' lengths."""
    text = config.get_text_config()
    width = text.hidden_size
    middle = getattr(text, "intermediate_size", None) or 4 * width
    return Facts(epoch_tokens, int(max(lengths)), text.num_hidden_layers, width, middle)
