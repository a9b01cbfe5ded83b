"""The fine-tuned model against the best prompted base, on the same held-out rows.

prompted.json    the base's answers with examples in its prompt
scores.json      `baselines`: its score; `prompted`: the difference, row by row
"""

from typing import TYPE_CHECKING

from weitiao.core.finding import Decision
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.recipe import Recipe
from weitiao.core.registry import create
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import format_interval
from weitiao.core.trainable_model import TrainableModel
from weitiao.evaluate.comparison.difference import VERDICTS, Difference, difference, judged_together
from weitiao.evaluate.forgetting.few_shot import SECONDS, TUNING_ROWS, main_metric, prompt_base
from weitiao.evaluate.measure import requested_metrics

if TYPE_CHECKING:
    from weitiao.pipeline.assemble import PreparedData

FILE = "prompted.json"


def record_prompted_base(base: TrainableModel, data: "PreparedData", recipe: Recipe, run: Run, reporter: Reporter) -> None:
    """What the base does with examples in its prompt; a resumed run has it already."""
    if data.final is None or data.few_shot is None or run.read(FILE, None) is not None:
        return
    settings = data.evaluate
    metric = main_metric(requested_metrics(settings, data.objective, data.final), data.final)
    if metric is None:
        return
    seconds = None if recipe.evaluate.forgetting is True else SECONDS
    with reporter.phase(run, "prompted_base", Message("measuring the base model with examples in its prompt")):
        room = int(settings.max_new_tokens)
        result = prompt_base(base, data.few_shot, data.final, metric, settings.limit, room, seconds)
    if result is not None:
        groups = data.final.groups[: len(result.pairs)]
        record = {"metric": result.metric, "k": result.k, "pairs": result.pairs, "tried": result.tried, "groups": groups}
        run.write(FILE, record)
        tried = ", ".join(f"{k}: {value:.3f}" for k, value in result.tried.items())
        reason = Message("of {metric} on {n} training rows by number: {tried}", metric=metric, n=TUNING_ROWS, tried=tried)
        if not tried:
            reason = Message("the smallest number: training rows have no column that {metric} reads", metric=metric)
        reporter.report(run, Decision("evaluate.few_shot", result.k, reason))


def compare_with_prompted_base(run: Run, reporter: Reporter) -> None:
    """Fine-tuned against prompted, on the rows that both answered; written to scores.json, and said."""
    base = run.read(FILE, None)
    after = run.read("row_results.json", {}).get("after", {})
    if base is None:
        return
    metric = create(Metric, base["metric"])
    prompted = [tuple(x) for x in base["pairs"]]
    tuned = [tuple(x) for x in (after.get(metric.reads) or after.get("choices") or ())][: len(prompted)]
    if not tuned:
        return
    pairs, groups = (prompted[: len(tuned)], tuned), base.get("groups", ())[: len(tuned)]
    (result,) = judged_together([difference(metric, base["metric"], "after", pairs, groups)])
    sentence = prompted_sentence(result, base["k"])
    label = str(Message("base with {k} examples in its prompt", k=base["k"]))
    baselines = {**run.scores.get("baselines", {}), label: result.reference_score.as_json()}
    record = {"k": base["k"], **result.as_json(), "sentence": sentence.as_json()}
    run.write("scores.json", {**run.scores, "baselines": baselines, "prompted": record})
    reporter.say(sentence, "" if result.verdict == "better" else "yellow")


def prompted_sentence(result: Difference, k: int) -> Message:
    """'accuracy: fine-tuned 81.0 % [...], base with 5 examples in its prompt 28.1 % [...]: +52.9 points [...] (better)'."""
    name = result.metric
    return Message(
        "{metric}: fine-tuned {after}, base with {k} examples in its prompt {before}: {change} ({verdict}, n = {n})",
        metric=name,
        k=k,
        after=format_interval(name, result.candidate_score.as_json()),
        before=format_interval(name, result.reference_score.as_json()),
        change=result.change_text,
        verdict=VERDICTS[result.verdict],
        n=result.n,
    )
