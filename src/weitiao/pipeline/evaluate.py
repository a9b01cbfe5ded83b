"""Measure a run or a model on held-out rows."""

from weitiao.core.errors import RunError
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.core.score import Score
from weitiao.data.prepare import Encoder, held_out_examples, held_out_sources
from weitiao.evaluate.measure import default_metrics, measure
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.prompting import with_system_message
from weitiao.plan.compatibility import check_metrics
from weitiao.plan.resolve import resolve_rows


def evaluate(
    target: str | Model,
    reporter: Reporter,
    data: str | None = None,
    metrics: tuple[str, ...] = (),
    limit: int | None = None,
    task: str = "",
) -> dict[str, Score]:
    """Measure a run (or any model) on its held-out rows, or on the file `data`.

    Args:
        metrics: names; (): those of the recipe, or what fits the objective.
        limit: at most this many rows for metrics that generate; None: as the recipe says.
        task: of a multi-task run, the task that `data` belongs to.

    Raises:
        RunError: there are no held-out rows, and no data.
    """
    model = open_model(target) if isinstance(target, str) else target
    recipe = model.recipe
    if recipe is None and data is None:
        raise RunError("a model without a run has no held-out rows: name a file with --data FILE.")
    if recipe is None:
        base = target if isinstance(target, str) else str(model.assets.folder)
        sources = (Source(path=str(data)),)
        recipe = Recipe(base=base, data=sources, objective=model.objective, overlong="truncate", out="")
    eval_sources = (Source(path=data, task=task),) if data else held_out_sources(recipe)
    assets, objective, settings = model.assets, model.objective, recipe.evaluate
    limits = resolve_rows(recipe, objective, assets.max_length)
    encoder = Encoder(objective, assets.processor, assets.identity, limits.max_length, limits.overlong, reporter)
    examples = held_out_examples(recipe, eval_sources)
    if assets.system:
        examples, changed = with_system_message(examples, assets.system)
        if changed:
            reporter.say(
                Message(
                    "{n:,} of {total:,} rows have no system message; that of the training rows is used: {message!r}",
                    n=changed,
                    total=len(examples),
                    message=assets.system[:200],
                )
            )
    eval_set = encoder.hold_out(examples)
    if eval_set is None:
        raise RunError("{target} has no held-out rows (validation: 0): name a file with --data FILE.", target=target)
    names = metrics or (settings.metrics if settings.metrics != "auto" else default_metrics(objective, eval_set))
    check_metrics(objective, names)
    limit, max_new_tokens = limit or settings.limit, settings.max_new_tokens
    return measure(model.model, objective, eval_set, names, limit, max_new_tokens, progress=reporter.track).scores
