"""A model opened from a Run, a PEFT adapter or a base: ask it, measure it, fold it together. What comes after training.

The other half of pipeline.py: the same stations, for one who has a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weitiao.core import hardware
from weitiao.core.errors import ModelError, RunError
from weitiao.core.example import Turn
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe, Source
from weitiao.core.registry import create
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import Score
from weitiao.core.trainable_model import TrainableModel
from weitiao.data.prepare import Encoder, held_out_examples, held_out_sources
from weitiao.deploy.merge import Merged
from weitiao.deploy.merge import merge as merge_into
from weitiao.evaluate import history
from weitiao.evaluate.measure import default_metrics, measure
from weitiao.pipeline.train import BaseAssets, load, open_base_assets
from weitiao.pipeline.trained import check_unchanged, read_trained
from weitiao.plan import resolve


@dataclass
class Model:
    """A model to use, from a Run, a PEFT adapter or a base."""

    model: TrainableModel
    tokens: BaseAssets
    objective: Objective
    recipe: Recipe | None = None
    adapters: dict[str, BaseAssets] = field(default_factory=dict)
    """Of several side by side: a name -> the words it was learnt with."""

    def for_task(self, task: str) -> "Model":
        """The same model, asked about one of several tasks.

        Raises:
            RecipeError: there is no such task, or none is named where there are several.
        """
        return replace(self, model=self.model.for_task(task), objective=self.objective.part(task))

    def prompt(self, turns: Sequence[Turn], adapter: str = "") -> list[int]:
        """A conversation up to where the model begins to speak, in the template that the adapter knows."""
        return self.adapters.get(adapter, self.tokens).processor.prompt(turns)


def open_model(target: str, precision: str = "") -> Model:
    """A Run folder, a PEFT adapter folder, or any base model.

    Args:
        precision: "": as the run was trained, or auto.

    Raises:
        ModelError, RunError: it is none of these, or the run has no result yet.
    """
    device, learnt = hardware.device(), read_trained(target)
    dtype = hardware.precision(precision or (learnt.precision if learnt else "auto"))[0]
    if learnt is None:
        tokens = open_base_assets(target)
        objective = create(Objective, "seq2seq" if tokens.architecture.kind == "encoder_decoder" else "sft")
        resolve.refuse_base(objective, Method.untouched(), tokens.architecture)  # pyright: ignore
        model = load(tokens, Method.untouched(), objective, dtype, device)[0]  # pyright: ignore[reportArgumentType]
        return Model(model, tokens, objective)  # pyright: ignore[reportArgumentType]
    tokens = open_base_assets(learnt.base, learnt.revision, learnt.template)
    check_unchanged(learnt, tokens.below)
    model = load(tokens, learnt.method, learnt.objective, dtype, device)[0]
    learnt.fill(model)
    return Model(model, tokens, learnt.objective, learnt.recipe)


def evaluate(
    target: str,
    reporter: Reporter,
    data: str | None = None,
    metrics: tuple[str, ...] = (),
    limit: int | None = None,
    task: str = "",
) -> dict[str, Score]:
    """Measure a run (or any model) on its held-out rows, or on the file `data`.

    Args:
        task: of several, which one `data` belongs to.

    Raises:
        RunError: a model without a run, and no data.
    """
    opened = open_model(target)
    recipe = opened.recipe
    if recipe is None and data is None:
        raise RunError("a model without a run has no held-out rows of its own: name them with --data FILE.")
    one = (Source(path=str(data)),)
    recipe = recipe or Recipe(base=target, data=one, objective=opened.objective, overlong="truncate", out="")  # pyright: ignore
    sources = (Source(path=data, task=task),) if data else held_out_sources(recipe)  # pyright: ignore
    tokens, objective = opened.tokens, opened.objective
    max_length, overlong = resolve.choose_max_length(recipe, tokens.max_length), resolve.choose_overlong(recipe, objective)
    encoder = Encoder(objective, tokens.processor, tokens.identity, max_length.value, overlong.value, reporter)
    eval_set = encoder.hold_out(held_out_examples(recipe, sources))
    if eval_set is None:
        raise RunError(f"{target} held nothing out (validation: 0): name rows with --data FILE.")
    wishes = recipe.evaluate
    wanted = metrics or (wishes.metrics if wishes.metrics != "auto" else default_metrics(objective, eval_set))
    resolve.refuse_metrics(objective, wanted)
    limit, room = limit or wishes.limit, wishes.max_new_tokens
    return measure(opened.model, objective, eval_set, wanted, limit, room, progress=reporter.track).scores


@dataclass
class History:
    """The story of a run."""

    summary: str
    events: list[tuple[str, str]]
    choices: list[tuple[str, str, str]]


def why(target: str) -> History:
    """What happened in a run, in words."""
    run = Run.open(target)
    return History(history.summary(run), list(history.history(run)), list(history.choices(run)))


def merge(target: str, out: str) -> Merged:
    """Fold a run's or an adapter's weights into the base: a folder that plain AutoModel opens."""
    opened = open_model(target, precision="fp32")
    if opened.model.heads:
        words = f"has a head of its own (objective: {opened.objective.name}), which no plain model folder holds"
        raise ModelError(f"{target} {words}: ask it with `weitiao predict {target}`.")
    return merge_into(opened.model, opened.tokens.tokenizer, Path(out))
