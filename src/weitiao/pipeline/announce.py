"""What `train` prints before the first step: what, where, with how many weights, and the plan."""

from weitiao.core import hardware
from weitiao.core.messages import Message
from weitiao.core.recipe import Recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.pipeline.assemble import TrainingSetup


def start(recipe: Recipe, run: Run, reporter: Reporter) -> None:
    """What is trained on what, and where the result goes."""
    reporter.say(
        Message(
            "{objective} with {method}: {base} -> {folder}",
            objective=recipe.objective.name,
            method=recipe.method.name,
            base=recipe.base,
            folder=run.folder,
        ),
        "bold",
    )
    if run.previous:
        reporter.say(Message("the older run was moved to {folder}", folder=run.previous))


def plan(setup: TrainingSetup, reporter: Reporter) -> None:
    """Weights, precision and device; steps, batch, learning rate and validations."""
    trained = sum(x.numel() for x in setup.state.model.trainable().values())
    reporter.say(
        Message(
            "model: {trained:,} weights are trained, {dtype} on {device}",
            trained=trained,
            dtype=str(setup.compute_dtype).removeprefix("torch."),
            device=hardware.device_name(),
        )
    )
    reporter.say(Message("plan: {steps}, {validation}", steps=_steps(setup), validation=_validation(setup)))


def _steps(setup: TrainingSetup) -> Message:
    ((key, size),) = setup.resolved.batch.items()
    values = {"steps": setup.resolved.steps, "size": size, "rate": setup.resolved.learning_rate}
    if key == "batch_size":
        return Message("{steps:,} steps of {size:,} rows at a learning rate of {rate:g}", **values)
    return Message("{steps:,} steps of {size:,} tokens at a learning rate of {rate:g}", **values)


def _validation(setup: TrainingSetup) -> Message:
    rows, every = setup.data.validation, setup.resolved.evaluate_every
    if rows is None:
        return Message("no validation rows")
    if not every:
        return Message("validated at the end on {n:,} rows", n=len(rows.examples))
    if every == 1:
        return Message("validated at every step on {n:,} rows", n=len(rows.examples))
    return Message("validated every {every} steps on {n:,} rows", every=every, n=len(rows.examples))
