"""What happened in a Run and why, as Messages: for `weitiao why`, the report and the terminal. No torch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from weitiao.core import events
from weitiao.core.events import Event
from weitiao.core.finding import Decision
from weitiao.core.messages import Message, joined
from weitiao.core.run import Run

SHOWN = 3  # suspect rows named in one sentence


@dataclass(frozen=True)
class History:
    """What `weitiao why` shows."""

    summary: Message
    events: list[tuple[int | None, Message]]
    """(step, what happened)"""
    decisions: list[Decision]
    """What was chosen for the user."""

    def as_json(self) -> dict[str, Any]:
        events = [{"step": step, "message": str(message)} for step, message in self.events]
        decisions = [{"key": x.key, "value": x.value, "reason": str(x.reason)} for x in self.decisions]
        return {"summary": str(self.summary), "events": events, "decisions": decisions}


def why(folder: str) -> History:
    """What happened in a Run, and why.

    Raises:
        RunError: there is none.
    """
    run = Run.open(folder)
    return History(summary(run), list(history(run)), [x for x in run.decisions.values() if not x.requested])


def history(run: Run) -> Iterator[tuple[int | None, Message]]:
    """(step, what happened) in the order of events.jsonl. Steps and validations are in `summary`, and left out here."""
    suspects = run.read("suspects.jsonl")
    for event in run.events():
        if isinstance(event, events.Skip):
            rows = [x for x in suspects if x["data_step"] == event.data_step]
            yield event.step, _skip(event, rows)
        elif (message := describe(event)) is not None:
            yield getattr(event, "step", None) if not isinstance(event, events.Throughput) else None, message


def describe(event: Event) -> Message | None:
    """One event in a sentence; None for those that are too many to be told one by one."""
    sentence = SENTENCES.get(type(event))
    return sentence(event) if sentence else None


def summary(run: Run) -> Message:
    """The Run in one sentence."""
    steps = list(run.events(events.Step))
    status = run.status.message
    if not steps:
        return status
    parts = [
        Message(
            "{status}: {n:,} steps taken, training loss {first:.3f} -> {last:.3f}",
            status=status,
            n=len(steps),
            first=steps[0].loss,
            last=steps[-1].loss,
        ),
        *_validations([x for x in run.events(events.Validation) if x.loss is not None]),
        *_drift(list(run.events(events.Validation))),
    ]
    if (best := result(run)) is not None:
        parts.append(best)
    skips, rollbacks = len(list(run.events(events.Skip))), len(list(run.events(events.Rollback)))
    parts.append(Message("{skips} steps skipped, {rollbacks} rollbacks", skips=skips, rollbacks=rollbacks))
    return joined("; ", parts)


def result(run: Run) -> Message | None:
    """Which step the best weights are of, and why; None while there are none."""
    best, steps = run.read("best/step.json", {}), [x.step for x in run.events(events.Step)]
    if "step" not in best or not steps:
        return None
    if not best.get("metric"):
        return Message(
            "the result is step {step} of {last}, the newest: nothing was held out to choose by",
            step=best["step"],
            last=steps[-1],
        )
    return Message(
        "the result is step {step} of {last}, the best by {metric}",
        step=best["step"],
        last=steps[-1],
        metric=best["metric"],
    )


def throughput(run: Run) -> Message | None:
    """How fast the Run trained; None where that was not measured."""
    measured = list(run.events(events.Throughput))
    return describe(measured[-1]) if measured else None


def _validations(measured: Sequence[events.Validation]) -> list[Message]:
    if not measured:
        return []
    losses = [(x.loss or 0.0, x.step) for x in measured]
    (first, at), (last, end), (least, best) = losses[0], losses[-1], min(losses)
    return [
        Message(
            "validation loss {first:.3f} (step {at}) -> {last:.3f} (step {end}), lowest {least:.3f} at step {best}",
            first=first,
            at=at,
            last=last,
            end=end,
            least=least,
            best=best,
        )
    ]


def _drift(measured: Sequence[events.Validation]) -> list[Message]:
    drifts = [x.scores["drift"]["value"] for x in measured if "drift" in x.scores]
    return [Message("{drift:.3f} nats a token from the base model on neutral text", drift=drifts[-1])] if drifts else []


def _skip(event: events.Skip, rows: Sequence[dict[str, Any]]) -> Message:
    worst = [Message("{where} (loss {loss})", where=x["where"], loss=_short(x["row_loss"])) for x in rows[:SHOWN]]
    if more := len(rows) - len(worst):
        return Message(
            "skipped, no weight was touched: {reason}. Its rows: {rows} and {more} more in suspects.jsonl",
            reason=event.reason,
            rows=joined("; ", worst),
            more=more,
        )
    return Message(
        "skipped, no weight was touched: {reason}. Its rows: {rows}", reason=event.reason, rows=joined("; ", worst)
    )


def _rollback(event: events.Rollback) -> Message:
    if event.lr_factor == 1.0:
        return Message(
            "rolled back from step {from_step}: {reason}. The bad batches are not used again",
            from_step=event.from_step,
            reason=event.reason,
        )
    return Message(
        "rolled back from step {from_step}: {reason}. The bad batches are not used again; the learning rate is "
        "multiplied by {lr_factor:g}",
        from_step=event.from_step,
        reason=event.reason,
        lr_factor=event.lr_factor,
    )


def _throughput(event: events.Throughput) -> Message:
    parts = [Message("{rate:,.0f} tokens/s", rate=event.tokens_per_second)]
    if event.share_of_limit is not None:
        parts.append(
            Message(
                "{share:.0%} of what this machine's matrix products reach ({reached:,.3g} GFLOP/s of {limit:,.3g})",
                share=event.share_of_limit,
                reached=event.gflop_per_second,
                limit=event.limit_gflop_per_second,
            )
        )
    if (shared := event.shared_prefix_fraction or 0.0) >= 0.01:
        parts.append(
            Message("{share:.0%} of the tokens were computed together with a row that starts the same", share=shared)
        )
    return joined("; ", parts)


def _end(event: events.End) -> Message:
    if event.outcome == "finished":
        return Message("finished")
    if event.outcome == "interrupted":
        return Message("interrupted")
    if event.outcome == "stopped":
        return Message("stopped by the guard: {reason}. The last sound checkpoint is the result", reason=event.reason)
    return Message("failed: {reason}", reason=event.reason)


def _short(loss: float | str) -> str:
    return loss if isinstance(loss, str) else f"{loss:.3g}"


SENTENCES: dict[type, Callable[[Any], Message]] = {
    events.Resume: lambda event: Message("resumed from this step"),
    events.CheckpointFailed: lambda event: Message(
        "step {step} could not be saved ({reason}); older checkpoints are intact and training goes on",
        step=event.step,
        reason=event.reason,
    ),
    events.Rollback: _rollback,
    events.EarlyStop: lambda event: Message(
        "early stop: no validation improvement since step {step}", step=event.best_step
    ),
    events.Throughput: _throughput,
    events.End: _end,
}
