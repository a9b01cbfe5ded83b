"""The command with which people judge: blind, side by side, in a page on this machine."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from weitiao.cli.run_command import AsJson, print_json, usage_error
from weitiao.cli.sampling_options import with_sampling_options
from weitiao.core.engine import SamplingParams
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message
from weitiao.core.score import format_score

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
HEAD = (
    Message("first"), Message("second"), Message("prompts"), Message("first wins"), Message("ties"), Message("second wins"),
    Message("share of the first [95 %]"), Message("p"),
)  # fmt: skip
EXPORTS = ("pairs",)


@with_sampling_options
def review(
    models: Annotated[
        list[str] | None, typer.Argument(help="Two or more: runs, folders, hub ids; NAME=MODEL names one.")
    ] = None,
    prompts: Annotated[str, typer.Option("--prompts", help='JSON lines: {"prompt": ...} or {"messages": [...]}.')] = "",
    out: Annotated[str, typer.Option(help="The folder of the review; default: reviews/A-B.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")] = 8010,
    judge: Annotated[str, typer.Option(help="A model or an address that judges, too; its key: WEITIAO_JUDGE_KEY.")] = "",
    judge_model: Annotated[
        str, typer.Option(help="Of a judge's server: the name of the model; default: its only one.")
    ] = "",
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Show the page; or only prepare, and let --judge judge.")
    ] = True,
    results: Annotated[str, typer.Option(help="Show what came out of the review in this folder.")] = "",
    export: Annotated[
        str, typer.Option(help="With --results: pairs writes preference rows (prompt, chosen, rejected).")
    ] = "",
    as_json: AsJson = False,
    *,
    sampling: SamplingParams,
) -> None:
    """People judge answers blindly, side by side, in a page on this machine; sign test, agreement, preference data."""
    from weitiao.core.reporter import Reporter

    console = Console(highlight=False)
    if export and (export not in EXPORTS or not results):
        raise usage_error("--export pairs goes with --results FOLDER")
    if results:
        _show(results, export, as_json, console)
        return
    if not models or not prompts:
        raise usage_error("give two or more models and --prompts FILE, or --results FOLDER")
    if page and (missing := [x for x in PACKAGES if find_spec(x) is None]):
        raise ModelError("review needs {package}. Install it with: pip install 'weitiao[serve]'", package=missing[0])
    reporter = Reporter(console)
    with reporter.spin(Message("loading torch and transformers")):
        from weitiao.pipeline.review import ReviewOptions, judge_review, prepare_review
    prepared, folder = prepare_review(ReviewOptions(models, prompts, sampling, out), reporter)
    if judge:
        judge_review(prepared, folder, judge, judge_model, reporter)
        _show(str(folder), "", False, console)
    if page:
        from weitiao.pipeline.review_server import serve_review

        serve_review(prepared, folder, port, reporter)
    reporter.say(Message("results: weitiao review --results {folder}", folder=folder))


def _show(folder: str, export: str, as_json: bool, console: Console) -> None:
    from weitiao.pipeline.review import export_pairs, read_results

    if export:
        file, n = export_pairs(folder)
        console.print(str(Message("{n:,} preference rows are in {file}", n=n, file=file)), soft_wrap=True, markup=False)
        return
    people, judges = read_results(folder)
    if as_json:
        print_json({**people.as_json(), "judge_models": [x.as_json() for x in judges]})
        return

    def say(template: str, **fields: Any) -> None:
        console.print(str(Message(template, **fields)), soft_wrap=True, markup=False)

    if people.judges:
        console.print(_table(people.pairs))
        for name, listed in people.rubrics.items():
            say("by {rubric}:", rubric=Message(name))
            console.print(_table(listed))
        for x in people.strengths:
            fields = {"name": x.name, "value": x.value, "low": x.low, "high": x.high}
            say("strength of {name} (Bradley-Terry, in logits): {value:+.2f} [{low:+.2f}, {high:+.2f}]", **fields)
        votes = ", ".join(f"{name} {n}" for name, n in people.judges.items())
        say("votes: {votes}", votes=votes)
        if people.judged_twice:
            say(
                "agreement of the judges: Krippendorff's alpha {alpha:.2f} [{low:.2f}, {high:.2f}], n = {n}",
                alpha=people.alpha, low=people.alpha_low, high=people.alpha_high, n=people.judged_twice,
            )  # fmt: skip
        share = format_score("accuracy", people.left.as_json())
        say("the left side won {share} of the decided votes (p = {p:.3f})", share=share, p=people.left_p)
    else:
        say("nobody has voted yet")
    for x in judges:
        _show_judge(x, console, say)


def _show_judge(x: Any, console: Console, say: Any) -> None:
    say("judge model {name}:", name=x.judge)
    console.print(_table(x.pairs))
    say(
        "{n:,} pairs judged; {inconsistent:,} verdicts changed with the places and count as ties, {unreadable:,} could "
        "not be read and do not count",
        n=x.judged, inconsistent=x.inconsistent, unreadable=x.unreadable,
    )  # fmt: skip
    if x.agreement is None:
        say("how far it agrees with people is not known: nobody has judged these pairs")
        return
    fields = {"kappa": x.agreement.kappa, "low": x.agreement.low, "high": x.agreement.high, "n": x.agreement.n}
    same = format_score("accuracy", x.agreement.same.as_json())
    say("agreement with people: {same}; Cohen's kappa {kappa:.2f} [{low:.2f}, {high:.2f}], n = {n}", same=same, **fields)


def _table(pairs: Any) -> Table:
    table = Table(*map(str, HEAD), box=None, padding=(0, 1, 0, 0), header_style="dim")
    for x in pairs:
        share = format_score("accuracy", x.share.as_json()).partition(", n =")[0]
        counts = (x.prompts, x.first_wins, x.ties, x.second_wins)
        table.add_row(x.first, x.second, *map(str, counts), share, f"{x.p_adjusted:.3f}")
    return table
