"""What the first lines of a Run's report say: is it better, better than prompting, what was forgotten, what was unusual."""

from collections.abc import Iterator
from typing import Any

from weitiao.core import events
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.core.score import MIN_ROWS, format_interval, score_verdict

Line = tuple[str, Message]
"""(better, worse, or "": neither; the sentence)"""
TASK = {
    "better": Message("Better at the task: {metric} {before} → {after}, n = {n}."),
    "worse": Message("Worse at the task: {metric} {before} → {after}, n = {n}."),
    "changed": Message("Changed: {metric} {before} → {after}, n = {n}; neither is better in itself."),
    "overlap": Message("No difference shown at the task: {metric} {before} → {after}, n = {n}; the intervals overlap."),
    "few_rows": Message("Too few held-out rows for a verdict: {metric} {before} → {after}, n = {n} (at least {least})."),
    "few_clusters": Message("Too few groups of rows for a verdict: {metric} {before} → {after}, n = {n}."),
}


def verdict(run: Run) -> Iterator[Line]:
    """What a reader should know before anything else."""
    scores = run.scores
    name = main_metric(scores)
    if name is not None:
        yield _of_task(name, scores["before"][name], scores["after"][name])
    elif scores.get("after"):
        yield "", Message("Measured after training only: whether it is better than before is not known.")
    else:
        yield "", Message("No rows were measured: whether the model is better at the task is not known.")
    prompted: Any = scores.get("prompted")
    if prompted is not None:
        yield prompted["verdict"], Message.from_json(prompted["sentence"])
    if name is not None:
        yield from _of_baselines(name, scores)
    yield from _of_forgetting(scores.get("forgetting"))
    yield from _unusual(run)


def main_metric(scores: dict[str, Any]) -> str | None:
    """The metric that the verdict is about: what the prompted base is compared by, or the first that is no loss."""
    before, after = scores.get("before", {}), scores.get("after", {})
    both = [x for x in after if x in before and after[x]["n"] and before[x]["n"]]
    prompted = scores.get("prompted", {}).get("metric")
    if prompted in both:
        return prompted
    # "loss", and "perplexity" of it, say least to a reader
    return next(iter(sorted(both, key=lambda x: x.rpartition(".")[2] in ("loss", "perplexity"))), None)


def _of_task(name: str, before: dict[str, Any], after: dict[str, Any]) -> Line:
    kind = score_verdict(before, after)
    values = {"before": format_interval(name, before), "after": format_interval(name, after)}
    return kind, Message(TASK[kind], metric=name, **values, n=after["n"], least=MIN_ROWS)


def _of_baselines(name: str, scores: dict[str, Any]) -> Iterator[Line]:
    """The trivial answers that it must beat."""
    after = scores["after"][name]
    for label, x in scores.get("baselines", {}).items():
        if x["name"] != name or not x["n"] or x == scores.get("prompted", {}).get("reference_score"):
            continue
        above = score_verdict(x, after)
        templates = {
            "better": Message("Above the baseline “{baseline}”: {score}."),
            "worse": Message("Below the baseline “{baseline}”: {score}."),
        }
        neither = Message("Not shown to be above the baseline “{baseline}”: {score}.")
        text = Message(templates.get(above, neither), baseline=label, score=format_interval(name, x))
        yield above if above in templates else "", text


def _of_forgetting(record: dict[str, Any] | None) -> Iterator[Line]:
    if record is None:
        yield "", Message("What it forgot was not measured.")
        return
    worse = [x for x in record["findings"] if x["verdict"] == "worse"]
    for x in worse:
        yield "worse", Message("Forgotten: {sentence}", sentence=Message.from_json(x["sentence"]))
    few = sum(x["verdict"] == "few_rows" for x in record["findings"])
    if not worse:
        few_items = Message("No forgetting shown by {n} measures; {few} more had too few items.")
        text = few_items if few else Message("No forgetting shown by {n} measures.")
        yield "", Message(text, n=len(record["findings"]) - few, few=few)


def _unusual(run: Run) -> Iterator[Line]:
    """What the guard did, and rows that could not be used."""
    skips, rollbacks = (len(list(run.events(x))) for x in (events.Skip, events.Rollback))
    if skips or rollbacks:
        yield "worse", Message("{skips} steps skipped, {rollbacks} rollbacks: see below.", skips=skips, rollbacks=rollbacks)
    if bad := run.read("resolved.json", {}).get("data", {}).get("bad_rows"):
        yield "worse", Message("{n:,} rows could not be used: see bad_rows.jsonl.", n=bad)
    if not run.is_finished:
        yield "worse", Message("Not finished: {status}.", status=run.status.message)
