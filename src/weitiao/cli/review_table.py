"""What a review found, in the terminal: people first, then judge models with their agreement with people."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from weitiao.core.messages import Message
from weitiao.core.score import format_p, format_score

HEAD = (
    Message("first"), Message("second"), Message("prompts"), Message("first wins"), Message("ties"), Message("second wins"),
    Message("share of the first [95 %]"), Message("p"),
)  # fmt: skip
RUBRICS = {
    "accuracy": Message("by accuracy:"),
    "completeness": Message("by completeness:"),
    "tone": Message("by tone:"),
    "safety": Message("by safety:"),
}


def print_review(people: Any, console: Console) -> None:
    """What people say.

    Args:
        people: `ReviewResults` (evaluate/review/review_results.py).
    """
    if not people.judges:
        console.print(str(Message("nobody has voted yet")))
        return
    console.print(_table(people.pairs))
    for name, listed in people.rubrics.items():
        console.print(str(RUBRICS[name]))
        console.print(_table(listed))
    for x in people.strengths:
        fields = {"name": x.name, "value": x.value, "low": x.low, "high": x.high}
        _say(
            console,
            Message("strength of {name} (Bradley-Terry, in logits): {value:+.2f} [{low:+.2f}, {high:+.2f}]"),
            **fields,
        )
    _say(console, Message("votes: {votes}"), votes=", ".join(f"{name} {n}" for name, n in people.judges.items()))
    if people.judged_twice:
        fields = {"alpha": people.alpha, "low": people.alpha_low, "high": people.alpha_high, "n": people.judged_twice}
        template = Message("agreement of the judges: Krippendorff's alpha {alpha:.2f} [{low:.2f}, {high:.2f}], n = {n}")
        _say(console, template, **fields)
    share = format_score("accuracy", people.left.as_json())
    _say(console, Message("the left side won {share} of the decided votes (p {p})"), share=share, p=format_p(people.left_p))


def print_judges(judges: Sequence[Any], console: Console) -> None:
    """What judge models say.

    Args:
        judges: `JudgeResults` (evaluate/review/judge_model.py).
    """
    for x in judges:
        _say(console, Message("judge model {name}:"), name=x.judge)
        console.print(_table(x.pairs))
        template = Message(
            "{n:,} pairs judged; {inconsistent:,} verdicts changed with the places and count as ties, {unreadable:,} could "
            "not be read and do not count"
        )
        _say(console, template, n=x.judged, inconsistent=x.inconsistent, unreadable=x.unreadable)
        if x.agreement is None:
            _say(console, Message("how far it agrees with people is not known: nobody has judged these pairs"))
            continue
        fields = {"kappa": x.agreement.kappa, "low": x.agreement.low, "high": x.agreement.high, "n": x.agreement.n}
        same = format_score("accuracy", x.agreement.same.as_json()).partition(", n =")[0]
        template = Message("agreement with people: {same}; Cohen's kappa {kappa:.2f} [{low:.2f}, {high:.2f}], n = {n}")
        _say(console, template, same=same, **fields)


def _say(console: Console, template: Message, **fields: Any) -> None:
    console.print(str(Message(template, **fields)), soft_wrap=True, markup=False)


def _table(pairs: Sequence[Any]) -> Table:
    table = Table(*map(str, HEAD), box=None, padding=(0, 1, 0, 0), header_style="dim")
    for x in pairs:
        share = format_score("accuracy", x.share.as_json()).partition(", n =")[0]
        counts = (x.prompts, x.first_wins, x.ties, x.second_wins)
        table.add_row(x.first, x.second, *map(str, counts), share, format_p(x.p_adjusted))
    return table
