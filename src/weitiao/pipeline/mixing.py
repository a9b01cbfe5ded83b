"""What is mixed, as it is told before training: rows, tokens, shares and epochs of each source, task or class."""

from collections.abc import Sequence
from typing import Any

from weitiao.core.finding import Finding
from weitiao.core.messages import Message, joined
from weitiao.core.mixing import Groups
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.data.loader import Loader
from weitiao.data.mixing_groups import WINDOW, Use, count_use
from weitiao.plan.mixing import Shares
from weitiao.plan.resolve import Resolved

MAX_LINES = 20
MANY_EPOCHS = 16
"""Repeated data are worth less and less: up to 4 epochs almost as much as new data, beyond 16 next to nothing (Muennighoff
et al. 2023, "Scaling Data-Constrained Language Models", arXiv 2305.16264, sec. 5 and 6)."""
MAX_DEVIATION = 0.005  # of a share over any 100 steps


def report_mixing(groups: Groups, resolved: Resolved, loader: Loader, run: Run, reporter: Reporter) -> list[Finding]:
    """Print and record what the run uses of each group, where there are several; and what is odd about it."""
    shares = resolved.mixing
    if len(groups.names) < 2 and shares is None:
        return []
    use = count_use(loader, groups, resolved.steps, shares.actual if shares else None)
    records = _records(groups, resolved, use)
    run.record(mixing={"groups": records, "steps": use.steps, "deviation": use.deviation})
    for x in records[:MAX_LINES]:
        reporter.say(
            Message(
                "{name}: {rows:,} rows, {tokens:,} tokens; {given:.1%} of what is trained on (asked: {asked:.1%}), each "
                "row {epochs:.1f} times",
                **x,
            )
        )
    if len(records) > MAX_LINES:
        reporter.say(Message("and {n:,} more, in {file}", n=len(records) - MAX_LINES, file=f"{run.folder}/resolved.json"))
    if shares is not None:
        reporter.detail(
            Message("over any {steps} steps, shares are within {points:.2f} points", steps=min(WINDOW, use.steps),
                    points=100 * (use.deviation or 0))
        )  # fmt: skip
    return _findings(records, shares, use)


def _records(groups: Groups, resolved: Resolved, use: Use) -> list[dict[str, Any]]:
    if resolved.mixing is not None:
        requested: Sequence[float] = resolved.mixing.requested
    else:
        weighted = [w * n for w, n in zip(resolved.source_weights, use.tokens.tolist(), strict=True)]
        requested = [x / sum(weighted) for x in weighted]
    columns = zip(groups.names, use.rows, use.tokens, requested, use.shares, use.used, strict=True)
    return [
        {
            "name": name,
            "rows": int(rows),
            "tokens": int(tokens),
            "asked": float(share),
            "given": float(actual),
            "epochs": float(used / max(tokens, 1)),
        }
        for name, rows, tokens, share, actual, used in columns
    ]


def _findings(records: list[dict[str, Any]], shares: Shares | None, use: Use) -> list[Finding]:
    messages: list[Message] = []
    plain = sum(x["epochs"] * x["tokens"] for x in records) / sum(x["tokens"] for x in records)
    often = [x for x in records if x["epochs"] > max(MANY_EPOCHS, 2 * plain)]
    if often:
        each = [Message("{name} ({rows:,} rows, {epochs:.0f} times)", **x) for x in often[:MAX_LINES]]
        messages.append(
            Message(
                "rows are repeated so often that they are learnt by heart: {groups}. Lower the share or the temperature, "
                "or set cap: {{epochs: 4}}",
                groups=joined(", ", each),
            )
        )
    if shares is not None and shares.idle_caps:
        messages.append(
            Message("caps above what would be used anyway limit nothing: {names}", names=", ".join(shares.idle_caps))
        )
    if shares is not None and (use.deviation or 0) > MAX_DEVIATION:
        messages.append(
            Message(
                "over {steps} steps a share is up to {points:.1f} points off: rows are long for these batches. More tokens "
                "a step (train.batch_tokens) keep shares closer",
                steps=min(WINDOW, use.steps),
                points=100 * (use.deviation or 0),
            )
        )
    pairs = zip(shares.requested, shares.actual, records) if shares is not None else ()
    if capped := [x for share, actual, x in pairs if abs(actual - share) > MAX_DEVIATION]:
        each = [Message("{name}: {given:.1%} instead of {asked:.1%}", **x) for x in capped[:MAX_LINES]]
        messages.append(Message("shares differ from what is asked, because of caps: {groups}", groups=joined(", ", each)))
    if not messages:
        message = Message("{n} groups are mixed as asked", n=len(records))
        return [Finding("mixing", "fine", message)] if shares is not None else []
    return [Finding("mixing", "warning", joined("; ", messages) if len(messages) > 1 else messages[0])]
