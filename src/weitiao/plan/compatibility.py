"""What goes together: objective, method, regularizers, metrics and base model. Checked before anything is loaded."""

from collections.abc import Callable, Sequence

from weitiao.core.architecture import Architecture
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message
from weitiao.core.method import Method
from weitiao.core.metric import Metric
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.registry import find, names
from weitiao.core.traits import Traits

TWO_VOCABULARIES = ("fsmt",)  # whose tokenizer encodes targets by the source's vocabulary


def check_decoder(architecture: Architecture) -> None:
    """Exams ask for the next tokens of a text.

    Raises:
        RecipeError: the model is no decoder.
    """
    if architecture.kind != "decoder":
        raise RecipeError("exams are for decoders (SmolLM2, Qwen); this model is {kind}.", kind=architecture.kind)


def check_base(objective: Objective, method: Method, architecture: Architecture) -> None:
    """Whether objective and method can be trained on this kind of base model.

    Raises:
        RecipeError: they cannot; the objectives that can are named.
    """
    traits, kind = objective.traits, architecture.kind
    facts = {"objective": objective.name, "model_type": architecture.model_type}
    if kind == "encoder" and traits.generative:
        raise RecipeError(
            "objective: {objective} needs a decoder or encoder-decoder model; the base is encoder-only ({model_type}). "
            "Objectives for it: {objectives}.",
            **facts,
            objectives=_objectives(lambda x: not x.generative),
        )
    if kind != "encoder" and traits.needs_mlm_head:
        raise RecipeError(
            "objective: {objective} needs an encoder-only model (BERT, RoBERTa); the base is {model_type}. "
            "Objectives for it: {objectives}; plain text is trained on with causal_lm.",
            **facts,
            objectives=_objectives(lambda x: not x.needs_mlm_head),
        )
    if kind == "encoder_decoder" and not traits.needs_encoder_decoder:
        raise RecipeError(
            "objective: {objective} is not for encoder-decoder models (T5, BART); the base is {model_type}. "
            "Objectives for it: {objectives}.",
            **facts,
            objectives=_objectives(lambda x: x.needs_encoder_decoder),
        )
    if kind != "encoder_decoder" and traits.needs_encoder_decoder:
        raise RecipeError(
            "objective: {objective} needs an encoder-decoder model (T5, BART); the base is {model_type}. "
            "A decoder-only model learns the same with sft.",
            **facts,
        )
    if architecture.model_type in TWO_VOCABULARIES:
        raise RecipeError(
            "base: family {model_type} has two vocabularies that its tokenizer cannot choose between. Translate with "
            "Marian, mBART, M2M-100 or NLLB.",
            model_type=architecture.model_type,
        )
    if kind == "encoder_decoder" and not method.encoder_decoder:
        raise RecipeError(
            "method: {method} does not support encoder-decoder models; the base is {model_type}. Use lora, for example.",
            method=method.name,
            model_type=architecture.model_type,
        )


def check_max_length(recipe: Recipe, architecture: Architecture) -> Message | None:
    """Whether the model has positions for the longest row that the recipe allows.

    Returns:
        A warning where it has, but was not trained with so many.

    Raises:
        RecipeError: it has not.
    """
    limit = architecture.max_length
    if recipe.max_length == "auto" or limit is None or recipe.max_length <= limit:
        return None
    facts = {"max_length": recipe.max_length, "limit": limit, "model_type": architecture.model_type}
    if architecture.has_position_table:
        raise RecipeError(
            "max_length {max_length:,}: the base takes {limit:,} tokens (the positions that {model_type} has). Write "
            "max_length: {limit}, or leave it out",
            **facts,
        )
    return Message(
        "max_length {max_length:,}: the base was trained with rows of up to {limit:,} tokens; longer ones are new to it",
        **facts,
    )


def check_stopping(recipe: Recipe, num_held_out: int) -> None:
    """Whether there is anything to look at for what is to be chosen or stopped by.

    Raises:
        RecipeError: there is not, and the wish could not be met.
    """
    train = recipe.train
    if not num_held_out and train.patience is not None:
        raise RecipeError(
            "train.patience: {patience}: no row is held out, so there is nothing to stop early by. Hold out rows "
            "(validation: 0.05), or leave patience out",
            patience=train.patience,
        )
    if not num_held_out and train.best_metric != "loss":
        raise RecipeError(
            "train.best_metric: {metric}: no row is held out, so there is nothing to choose by. Hold out rows "
            "(validation: 0.05), or leave best_metric out",
            metric=train.best_metric,
        )
    if train.patience is not None and train.evaluate_every == 0:
        raise RecipeError(
            "train.patience: {patience}: with evaluate_every: 0 there is one validation, at the end, and nothing is "
            "stopped early. Set evaluate_every, or leave patience out",
            patience=train.patience,
        )


def check_patience(recipe: Recipe, steps: int, evaluate_every: int) -> Message | None:
    """A warning where training ends before its patience could.

    Raises:
        RecipeError: there is only one validation, at the end.
    """
    patience = recipe.train.patience
    if patience is None or not evaluate_every:
        return None
    validations = -(-steps // evaluate_every)
    facts = {"patience": patience, "n": validations, "every": evaluate_every, "steps": steps}
    if recipe.train.evaluate_every != "auto" and validations < 2 <= steps:
        raise RecipeError(
            "train.patience: {patience}: with evaluate_every: {every} and {steps:,} steps there is one validation, at the "
            "end, and nothing is stopped early. Set a smaller evaluate_every, or leave patience out",
            **facts,
        )
    if validations > patience:
        return None
    return Message(
        "train.patience: {patience}: there are {n} validations in {steps:,} steps, so training never stops early", **facts
    )


def check_best_metric(recipe: Recipe, objective: Objective, closed_answers: Callable[[str], bool]) -> None:
    """Whether the metric that chooses the best step can be measured on the held-out rows.

    Args:
        closed_answers: task name ("" where there is one) -> the answers of its held-out rows are a closed set.

    Raises:
        RecipeError: it cannot.
    """
    if recipe.train.best_metric == "loss":
        return
    task, _, metric = recipe.train.best_metric.rpartition(".")
    part = objective.part(task)
    generates = part.traits.generative and not part.traits.has_predict
    if generates and find(Metric, metric).reads == "choices" and not closed_answers(task):
        raise RecipeError(
            "train.best_metric: {metric} cannot be measured on these held-out rows: it chooses among a closed set of "
            "answers, and theirs are not one. Use loss or exact_match",
            metric=recipe.train.best_metric,
        )


def _objectives(fits: Callable[[Traits], bool]) -> str:
    return ", ".join(name for name in names(Objective) if fits(find(Objective, name).default_traits))


def check_metrics(objective: Objective, metrics: Sequence[str], best_metric: str = "loss") -> None:
    """Whether the objective's predictions can be measured with these metrics.

    Args:
        best_metric: what the best weights are chosen by; of several tasks it names one.

    Raises:
        RecipeError: one of them is not among the objective's metrics.
    """
    for name in (best_metric, *metrics):
        find(Metric, name.rpartition(".")[2])  # refuses a name that is none, with the nearest
    parts = objective.parts()
    own = [
        f"{task}.{name}" if task else name
        for task, part in parts.items()
        for name in (*part.traits.metrics, *part.traits.optional_metrics)
    ]
    if len(parts) > 1 and best_metric != "loss" and "." not in best_metric:
        raise RecipeError(
            "train.best_metric: {metric} of which task? Write task.{metric}; there are: {metrics}.",
            metric=best_metric,
            metrics=", ".join(own),
        )
    if any(part.traits.generative and not part.traits.has_predict for part in parts.values()):
        own += [name for name in names(Metric) if find(Metric, name).compares_texts and name not in own]
        own += [f"{task}.{name}" for task in parts if task for name in names(Metric) if find(Metric, name).compares_texts]
    valid = {"loss", *own, *(name.rpartition(".")[2] for name in own)}
    if unknown := [name for name in (best_metric, *metrics) if name not in valid]:
        raise RecipeError(
            "evaluate.metrics, train.best_metric: {metric} does not fit objective {objective}. Its metrics: {metrics}.",
            metric=unknown[0],
            objective=objective.name,
            metrics=", ".join(own),
        )
    if getattr(find(Metric, best_metric.rpartition(".")[2]), "higher_is_better", True) is None:
        raise RecipeError(
            "train.best_metric: {metric} is neither better when higher nor when lower. Choose another metric.",
            metric=best_metric,
        )


def check_regularizers(recipe: Recipe) -> None:
    """Whether the regularizers go with one another, the objective, the method and gradient checkpointing.

    Raises:
        RecipeError: one does not.
    """
    regularizers, objective = recipe.regularizers, recipe.objective
    if regularizers and len(objective.parts()) > 1:
        raise RecipeError(
            "regularizers: each changes the loss of one task, and {objective} has several.", objective=objective.name
        )
    if regularizers and objective.traits.step != "accumulate":
        raise RecipeError(
            "regularizers: {objective} computes its gradients with step {step}, which does not apply them.",
            objective=objective.name,
            step=objective.traits.step,
        )
    comparing = [x.name for x in regularizers if x.uses_log_probs]
    for x in regularizers:
        if x.swaps_weights and recipe.train.gradient_checkpointing == "on":
            raise RecipeError(
                "regularizers: {name} replaces weights during the forward pass, and gradient checkpointing would recompute "
                "with the original ones. Leave train.gradient_checkpointing off.",
                name=x.name,
            )
        if x.swaps_weights and comparing:
            raise RecipeError(
                "regularizers: {name} replaces weights for the loss alone, and {other} would compare distributions of "
                "different weights. Use one of them.",
                name=x.name,
                other=comparing[0],
            )
        if refusal := x.refusal(objective, recipe.method):
            raise RecipeError("regularizers: {name}: {refusal}", name=x.name, refusal=refusal)


def check_virtual_tokens(virtual_tokens: int, longest_row: int, limit: int | None) -> None:
    """Whether soft prompts and prefixes leave room for the longest row.

    Args:
        limit: tokens that the model takes; None: no limit.

    Raises:
        RecipeError: they do not.
    """
    if virtual_tokens and limit is not None and virtual_tokens + longest_row > limit:
        raise RecipeError(
            "method.num_virtual_tokens: {virtual_tokens} virtual tokens before every row and rows of up to {longest} "
            "tokens exceed the {limit} tokens that the model takes. At most {room} fit; or set a smaller max_length.",
            virtual_tokens=virtual_tokens,
            longest=longest_row,
            limit=limit,
            room=max(0, limit - longest_row),
        )


def choose_step(method: Method, objective: Objective) -> str:
    """The file of train/steps/ that computes the gradients.

    Raises:
        RecipeError: method and objective need different ones.
    """
    steps = {method.step, objective.traits.step} - {"accumulate"}
    if len(steps) > 1:
        raise RecipeError(
            "method {method} needs step {step}, objective {objective} needs {other}; they cannot be combined.",
            method=method.name,
            step=method.step,
            objective=objective.name,
            other=objective.traits.step,
        )
    return steps.pop() if steps else "accumulate"


def activation_cache_refusal(recipe: Recipe, objective: Objective, num_processes: int) -> Message | None:
    """Why the outputs of frozen layers cannot be cached over epochs; None: they can."""
    if num_processes > 1:
        return Message("not supported with several processes")
    if any(x.traits.dynamic_masking or x.traits.repacks_segments for x in objective.parts().values()):
        return Message("{objective} changes the tokens each time", objective=objective.name)
    regularizers = [x for x in recipe.regularizers if x.changes_embeddings]
    return Message("{name} changes the embeddings each time", name=regularizers[0].name) if regularizers else None
