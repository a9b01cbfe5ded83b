"""A trained model that searches against rankings without a model (evaluate/retrieval_baselines.py), on the same rows.

scores.json      `baselines`: their scores
"""

from collections.abc import Sequence

from weitiao.core.errors import DataError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import SourcedExample
from weitiao.core.messages import Message
from weitiao.core.metric import Metric
from weitiao.core.objective import Objective
from weitiao.core.registry import create
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import Score, format_interval
from weitiao.data.prepare import read_training
from weitiao.evaluate.comparison.difference import VERDICTS, difference, judged_together
from weitiao.evaluate.measure import groups_of_queries
from weitiao.evaluate.retrieval_baselines import Baseline, retrieval_baselines
from weitiao.pipeline.inference import Model


def baselines_for(objective: Objective, training: Sequence[SourcedExample], eval_set: EvalSet | None) -> Sequence[Baseline]:
    """The rankings that an objective is compared with; none if it does not search. Several tasks have none."""
    searches = objective.traits.ranks_together and "recall_at_10" in objective.traits.metrics
    return retrieval_baselines(training, eval_set) if searches and eval_set is not None and not eval_set.tasks else ()


def baselines_of_run(model: Model, eval_set: EvalSet) -> Sequence[Baseline]:
    """Those of a finished run's model; none where its training rows are gone."""
    if model.recipe is None or not model.objective.traits.ranks_together:
        return ()
    try:
        return baselines_for(model.objective, read_training(model.recipe, model.training_columns), eval_set)
    except DataError:
        return ()


def baseline_scores(baselines: Sequence[Baseline], metrics: Sequence[str], eval_set: EvalSet) -> dict[str, Score]:
    """'popularity (recall_at_10)' -> its score."""
    scores: dict[str, Score] = {}
    for baseline in baselines:
        for metric in (create(Metric, name) for name in metrics):
            if (ranks := baseline.ranks(metric)) is not None:
                groups = groups_of_queries(eval_set) if metric.reads == "rankings" else eval_set.groups
                scores[f"{baseline.name} ({metric.name})"] = metric.score(ranks, groups)
    return scores


def compare_with_baselines(
    baselines: Sequence[Baseline], metrics: Sequence[str], eval_set: EvalSet, run: Run, reporter: Reporter
) -> None:
    """Score the baselines, and compare the first metric of ranks row by row; written to scores.json, and said."""
    scores = baseline_scores(baselines, metrics, eval_set)
    recorded = {name: x.as_json() for name, x in scores.items()}
    run.write("scores.json", {**run.scores, "baselines": {**run.scores.get("baselines", {}), **recorded}})
    metric = next((x for x in (create(Metric, name) for name in metrics) if x.reads == "choices"), None)
    tuned = [tuple(x) for x in run.read("row_results.json", {}).get("after", {}).get("choices", ())]
    if metric is None or not tuned:
        return
    compared = [(list(baseline.ranks(metric) or ()), tuned) for baseline in baselines]
    results = judged_together([difference(metric, metric.name, "after", x, eval_set.groups) for x in compared])
    for baseline, result in zip(baselines, results):
        sentence = Message(
            "{metric}: fine-tuned {after}, {baseline} {before}: {change} ({verdict}, n = {n})",
            metric=metric.name,
            after=format_interval(metric.name, result.candidate_score.as_json()),
            baseline=baseline.name,
            before=format_interval(metric.name, result.reference_score.as_json()),
            change=result.change_text,
            verdict=VERDICTS[result.verdict],
            n=result.n,
        )
        reporter.say(sentence, "" if result.verdict == "better" else "yellow")
