"""What the first lines of a Run's report say: is it better, better than prompting, what was forgotten, what was unusual."""

from collections.abc import Iterator, Mapping
from typing import Any

from weitiao.core import events
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.core.score import MIN_ROWS, format_interval, score_verdict
from weitiao.evaluate.comparison.difference import Difference

PAIRED = {
    "better": Message("Better at the task: {metric} {before} → {after}, {change} on the same {n:,} rows."),
    "worse": Message("Worse at the task: {metric} {before} → {after}, {change} on the same {n:,} rows."),
    "changed": Message("Changed: {metric} {before} → {after}, {change} on the same {n:,} rows; neither is better."),
    "open": Message("No difference shown at the task: {metric} {before} → {after}, {change} on the same {n:,} rows."),
    "few_rows": Message("Too few held-out rows for a verdict: {metric} {before} → {after}, n = {n:,} (at least {least})."),
}
PROMPTED = {
    "better": Message("Better than the base with {k} examples in its prompt ({before}): {change}, n = {n:,}."),
    "worse": Message("Worse than the base with {k} examples in its prompt ({before}): {change}, n = {n:,}."),
    "": Message("Not shown to be better than the base with {k} examples in its prompt ({before}): {change}, n = {n:,}."),
}
CONSTANT = {
    "better": Message("Better than always answering “{answer}” ({before}): {change}, n = {n:,}."),
    "worse": Message("Worse than always answering “{answer}” ({before}): {change}, n = {n:,}."),
    "": Message("Not shown to be better than always answering “{answer}” ({before}): {change}, n = {n:,}."),
}
Line = tuple[str, Message]
"""(better, worse, warning, or "": none of them; the sentence)"""
TASK = {
    "better": Message("Better at the task: {metric} {before} → {after}, n = {n}."),
    "worse": Message("Worse at the task: {metric} {before} → {after}, n = {n}."),
    "changed": Message("Changed: {metric} {before} → {after}, n = {n}; neither is better in itself."),
    "overlap": Message("No difference shown at the task: {metric} {before} → {after}, n = {n}; the intervals overlap."),
    "few_rows": Message("Too few held-out rows for a verdict: {metric} {before} → {after}, n = {n} (at least {least})."),
    "few_clusters": Message("Too few groups of rows for a verdict: {metric} {before} → {after}, n = {n}."),
}


def verdict(
    run: Run, paired: Mapping[str, Difference] | None = None, constant: tuple[str, Difference] | None = None
) -> Iterator[Line]:
    """What a reader should know before anything else.

    Args:
        paired: before and after by metric, row by row; a metric without one is judged by its two intervals.
        constant: the most frequent class, and the result against always answering it.
    """
    scores = run.scores
    name = main_metric(scores)
    if name is not None:
        known = (paired or {}).get(name)
        yield _of_pairs(known) if known and known.test else _of_task(name, scores["before"][name], scores["after"][name])
    elif scores.get("after"):
        yield "", Message("Measured after training only: whether it is better than before is not known.")
    else:
        yield "", Message("No rows were measured: whether the model is better at the task is not known.")
    prompted: Any = scores.get("prompted")
    if prompted is not None:
        yield _against(PROMPTED, Difference.from_json(prompted), k=prompted["k"])
    if constant is not None:
        yield _against(CONSTANT, constant[1], answer=constant[0])
    if name is not None:
        yield from _of_baselines(name, scores, constant)
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


def _of_pairs(x: Difference) -> Line:
    return x.verdict, Message(PAIRED[x.verdict], **_sides(x), least=MIN_ROWS)


def _against(templates: Mapping[str, Message], x: Difference, **facts: Any) -> Line:
    """Against a baseline on the same rows. Where nothing is shown, that is worth a warning."""
    kind = x.verdict if x.verdict in templates else ""
    return kind or "warning", Message(templates[kind], **_sides(x), **facts)


def _sides(x: Difference) -> dict[str, Any]:
    scores = {"before": x.reference_score, "after": x.candidate_score}
    values = {key: format_interval(x.metric, y.as_json()).partition(" [")[0] for key, y in scores.items()}
    return {**values, "metric": x.metric, "change": x.change_text, "n": x.n}


def other_baselines(scores: Mapping[str, Any], constant: tuple[str, Difference] | None) -> dict[str, dict[str, Any]]:
    """Those of scores.json that are neither the prompted base nor always the most frequent class."""
    known = [scores.get("prompted", {}).get("reference_score"), constant and constant[1].reference_score.as_json()]
    return {label: x for label, x in scores.get("baselines", {}).items() if x["n"] and x not in known}


def _of_baselines(name: str, scores: dict[str, Any], constant: tuple[str, Difference] | None) -> Iterator[Line]:
    """The trivial answers that it must beat, as somebody wrote them into scores.json."""
    after = scores["after"][name]
    for label, x in other_baselines(scores, constant).items():
        if x["name"] != name:
            continue
        above = score_verdict(x, after)
        templates = {
            "better": Message("Above the baseline “{baseline}”: {score}."),
            "worse": Message("Below the baseline “{baseline}”: {score}."),
        }
        neither = Message("Not shown to be above the baseline “{baseline}”: {score}.")
        text = Message(templates.get(above, neither), baseline=label, score=format_interval(name, x))
        yield above if above in templates else "warning", text


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
    """What the guard did, rows that could not be used, warnings; one calm line where there is nothing."""
    lines = list(_troubles(run))
    yield from lines or [("", Message("Nothing unusual: no step was skipped, no row was left out, no check warned."))]


def _troubles(run: Run) -> Iterator[Line]:
    skips, rollbacks = (len(list(run.events(x))) for x in (events.Skip, events.Rollback))
    if skips or rollbacks:
        yield (
            "warning",
            Message("{skips} steps skipped, {rollbacks} rollbacks: see below.", skips=skips, rollbacks=rollbacks),
        )
    if failed := len(list(run.events(events.CheckpointFailed))):
        yield "warning", Message("{n} checkpoints could not be written: see below.", n=failed)
    data = run.read("resolved.json", {}).get("data", {})
    if bad := data.get("bad_rows"):
        yield "warning", Message("{n:,} rows could not be used: see bad_rows.jsonl.", n=bad)
    if cut := data.get("truncated", 0) + data.get("dropped", 0):
        yield "warning", Message("{n:,} rows were truncated or dropped: they are too long.", n=cut)
    named = dict.fromkeys(x["name"] for x in run.read("preflight.json", []) if x["level"] != "fine")
    if named:
        yield "warning", Message("The preflight check warned: {names}.", names=", ".join(named))
    if not run.is_finished:
        yield "warning", Message("Not finished: {status}.", status=run.status.message)
