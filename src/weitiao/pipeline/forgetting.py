"""Forgetting: the same questions before and after training, and what of it the model has lost.

forgetting.jsonl    each item's result, before and after
scores.json         `forgetting`: a finding for each probe, and what to do
"""

from collections.abc import Mapping, Sequence
from typing import Any

from weitiao.core import events
from weitiao.core.errors import RunError
from weitiao.core.example import Text
from weitiao.core.finding import Decision
from weitiao.core.forgetting_lines import forgetting_lines
from weitiao.core.messages import Message, joined
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.drift import Drift
from weitiao.evaluate.examination.result import ItemResult
from weitiao.evaluate.forgetting.advice import Training, advise
from weitiao.evaluate.forgetting.findings import DRIFT, Forgetting, findings
from weitiao.evaluate.forgetting.probes import (
    EXAMS,
    SECONDS,
    Behaviours,
    NeutralText,
    ProbeResult,
    ShortExams,
    Suite,
    ask_all,
    left_out,
    probe_result,
)
from weitiao.pipeline.exam_data import open_exams
from weitiao.pipeline.exams import ITEMS, take_exams
from weitiao.pipeline.inference import Model, open_model
from weitiao.pipeline.load import BaseAssets
from weitiao.plan.compatibility import check_decoder
from weitiao.plan.resolve import choose_learning_rate

FILE = "forgetting.jsonl"
MIN_VOCABULARY = 1000  # tokens; with fewer, general text means nothing to a model


def is_measured(recipe: Recipe, objective: Objective, assets: BaseAssets) -> Decision:
    """Whether forgetting is measured, and why.

    Raises:
        RecipeError: it is asked for, and the model is no decoder.
    """
    key, setting = "evaluate.forgetting", recipe.evaluate.forgetting
    if setting != "auto":
        if setting:
            check_decoder(assets.architecture)
        return Decision(key, setting, Message("as the recipe says"), requested=True)
    if assets.architecture.kind != "decoder" or not objective.traits.generative:
        return Decision(key, False, Message("the model does not generate text"))
    if len(assets.tokenizer) < MIN_VOCABULARY:
        return Decision(key, False, Message("a vocabulary of {n:,} tokens is too small for text", n=len(assets.tokenizer)))
    return Decision(key, True, Message("short form, at most about {n:.0f} s before and after training", n=SECONDS))


def suites_for(recipe: Recipe, objective: Objective, assets: BaseAssets) -> tuple[Suite, ...]:
    """What is asked. Of a model that continues text, no behaviour; an exam of the recipe's own is not taken twice."""
    names = [x for x in EXAMS if x not in recipe.evaluate.exams]
    suites: tuple[Suite, ...] = (NeutralText(), ShortExams(open_exams(names), assets.max_length))
    return suites if assets.continues_text or objective.traits.example_type is Text else (*suites, Behaviours())


def record_before(model: TrainableModel, suites: Sequence[Suite], recipe: Recipe, run: Run, reporter: Reporter) -> None:
    """What the base model knows; a resumed run has it already."""
    if not suites or any(x["when"] == "before" for x in run.read(FILE)):
        return
    seconds = None if recipe.evaluate.forgetting is True else SECONDS
    with reporter.phase(run, "forgetting_before", None):
        results = ask_all(model, suites, seconds, track=reporter.track)
    run.write(FILE, [{"when": "before", **x.as_json()} for x in results])


def record_after(
    model: TrainableModel, suites: Sequence[Suite], training: Training, best_step: int | None, run: Run, reporter: Reporter
) -> None:
    """What the result knows of the same items; the findings go to scores.json."""
    if not suites:
        return
    lines = [x for x in run.read(FILE) if x["when"] == "before"]
    before = [ProbeResult.from_json(x) for x in lines]
    with reporter.phase(run, "forgetting_after", None):
        after = ask_all(model, suites, items={x.item for x in before}, track=reporter.track)
    run.write(FILE, [*lines, *({"when": "after", **x.as_json()} for x in after)])
    exams = {when: [_of_line(x) for x in run.read(ITEMS) if x["when"] == when] for when in ("before", "after")}
    compared = findings([*before, *exams["before"]], [*after, *exams["after"]])
    notes = left_out(suites, before)
    forgetting = Forgetting(tuple(compared), None, _recorded_drift(run, best_step), tuple(notes)).advised(advise(training))
    run.write("scores.json", {**run.scores, "forgetting": forgetting.as_json()})
    say_forgetting(forgetting, reporter)


def evaluate_forgetting(after: Model, reporter: Reporter) -> Forgetting:
    """What a run's result has lost, in full: its base is measured again.

    Raises:
        RunError: it is no run.
        RecipeError: it is no decoder.
    """
    recipe = after.recipe
    if recipe is None:
        raise RunError("forgetting is of a run: a model without one has no base to compare with.")
    check_decoder(after.assets.architecture)
    suites, exams = suites_for(recipe, after.objective, after.assets), open_exams(recipe.evaluate.exams)

    def results_of(model: TrainableModel, label: str) -> list[ProbeResult]:
        taken = take_exams(model, exams, after.assets.max_length, reporter, label)
        return [*ask_all(model, suites, track=reporter.track), *(probe_result(x.name, y) for x in taken for y in x.items)]

    if after.model.attachment.set_enabled is not None:
        drift = Drift(after.model)
        with after.model.reference() as base:
            earlier = results_of(base, "before")
    else:
        opened = open_model(recipe.base).model
        drift, earlier = Drift(opened), results_of(opened, "before")
    compared = findings(earlier, results_of(after.model, "after"))
    score = drift(after.model)
    forgetting = Forgetting(tuple(compared), None, {key: getattr(score, key) for key in ("value", "low", "high", "n")})
    return forgetting.advised(advise(training_of(recipe, choose_learning_rate(recipe).value)))


def training_of(recipe: Recipe, learning_rate: float) -> Training:
    """What the advice is drawn from."""
    replay = recipe.replay.fraction if recipe.replay else 0.0
    return Training(type(recipe.method).trains_base, replay, recipe.train.epochs, learning_rate)


def say_forgetting(forgetting: Forgetting, reporter: Reporter) -> None:
    """Losses and what to do, or how much was asked without one; all of it with -v."""
    worse, n = forgetting.worse, len(forgetting.findings)
    few = sum(x.verdict == "few_rows" for x in forgetting.findings)
    if not worse and few:
        text = Message("forgetting: none shown by {n} measures, {few} more had too few items (report.html lists them)")
        reporter.say(Message(text, n=n - few, few=few))
    elif not worse:
        reporter.say(Message("forgetting: none shown by {n} measures (report.html lists them)", n=n))
    else:
        reporter.say(Message("forgetting: {worse} of {n} measures are worse", worse=len(worse), n=n), "bold")
    for verdict, line in forgetting_lines(forgetting.as_json()):
        if verdict in ("worse", "advice"):
            reporter.say(joined("  ", ["", line]))
        else:
            reporter.detail(joined("  ", ["", line]))


def _of_line(line: Mapping[str, Any]) -> ProbeResult:
    return probe_result(line["exam"], ItemResult.from_json(line))


def _recorded_drift(run: Run, best_step: int | None) -> Mapping[str, Any] | None:
    """Of the step whose weights are the result: measured when it was validated."""
    drift = None
    for x in run.events(events.Validation):
        if DRIFT in x.scores and (best_step is None or x.step == best_step):
            drift = x.scores[DRIFT]
    return drift
