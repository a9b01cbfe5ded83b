"""What happened in a run and why, in plain words: for `weitiao why`, and for the report."""

from collections.abc import Iterator
from typing import Any

from weitiao.core.run import Run, encode_with_word_ids

SHOWN = 3  # suspect rows named in one sentence


def history(run: Run) -> Iterator[tuple[str, str]]:
    """(when, what happened) in the order of the journal; steps and validations are summed up, all else is told."""
    suspects = run.read_lines("suspects.jsonl")
    for line in run.events():
        words = _WORDS.get(line["event"])
        if words is not None:
            yield f"step {line['step']}" if "step" in line else "", words(line, suspects)


def choices(run: Run) -> Iterator[tuple[str, str, str]]:
    """(key, value, reason) of everything that was chosen for the user."""
    for x in run.decisions.values():
        if not x.requested:
            yield x.key, x.shown_value, str(x.reason)


def summary(run: Run) -> str:
    """The run in one sentence."""
    steps, held = list(run.events("step")), [x for x in run.events("validation") if x["loss"] is not None]
    if not steps:
        return f"{run.status}"
    words = f"{run.status}: {len(steps)} steps taken, training loss {steps[0]['loss']:.3f} -> {steps[-1]['loss']:.3f}"
    if held:
        best = min(held, key=lambda x: x["loss"])
        first, last = (f"{x['loss']:.3f} (step {x['step']})" for x in (held[0], held[-1]))
        words += f"; on held-out rows {first} -> {last}, least {best['loss']:.3f} at step {best['step']}"
    drifts = [x["scores"]["drift"] for x in run.events("validation") if "drift" in x["scores"]]
    if drifts:
        words += f"; on neutral text {drifts[-1]['value']:.3f} nats a token from the base model"
    skipped, returned = len(list(run.events("skipped"))), len(list(run.events("rollback")))
    words += f"; {run.result}" if run.result else ""
    return words + f"; {skipped} steps skipped, {returned} returns"


def _skipped(line: dict[str, Any], suspects: list[dict[str, Any]]) -> str:
    rows = [x for x in suspects if x["position"] == line["position"]]
    worst = "; ".join(f"{x['where']} (loss {_short(x['row_loss'])})" for x in rows[:SHOWN])
    more = f" and {len(rows) - SHOWN} more in suspects.jsonl" if len(rows) > SHOWN else ""
    return f"skipped, nothing was touched: {line['reason']}. Its rows: {worst}{more}"


def _returned(line: dict[str, Any], _: Any) -> str:
    rate = "" if line["rate"] == 1.0 else f", with {line['rate']:g} times the learning rate"
    return f"went back here from step {line['from_step']}: {line['reason']}. The data went on behind the bad stretch{rate}"


def _short(loss: float | str) -> str:
    return loss if isinstance(loss, str) else f"{loss:.3g}"


_WORDS = {
    "resumed": lambda line, _: "gone on from here",
    "interrupted": lambda line, _: "interrupted; everything was saved",
    "skipped": _skipped,
    "rollback": _returned,
    "save_failed": lambda line, _: line["words"],
    "early_stop": lambda line, _: f"stopped early: validation had nothing better to say since step {line['best_step']}",
    "stopped": lambda line, _: f"stopped by the guard: {line['reason']}. The last sound state is the result",
    "speed": lambda line, _: encode_with_word_ids(line),
    "finished": lambda line, _: "finished",
}
