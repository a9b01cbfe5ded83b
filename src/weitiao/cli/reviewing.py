"""The command with which people judge: blind, side by side, in a page on this machine."""

from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console

from weitiao.cli.option_group import option_group
from weitiao.cli.review_table import print_judges, print_review
from weitiao.cli.run_command import AsJson, print_json, usage_error
from weitiao.cli.sampling_options import with_sampling_options
from weitiao.core.engine import SamplingParams
from weitiao.core.errors import ModelError
from weitiao.core.messages import Message

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
EXPORTS = ("pairs",)
JUDGE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "judge": (
        Annotated[str, typer.Option(help="A model or an address that judges, too; its key: WEITIAO_JUDGE_KEY.")],
        "",
    ),
    "judge_model": (
        Annotated[str, typer.Option(help="Of a judge's server: the name of the model; default: its only one.")],
        "",
    ),
}
RESULTS_OPTIONS: dict[str, tuple[Any, Any]] = {
    "results": (Annotated[str, typer.Option(help="Show what came out of the review in this folder.")], ""),
    "export": (
        Annotated[str, typer.Option(help="With --results: pairs writes preference rows (prompt, chosen, rejected).")],
        "",
    ),
}
Models = Annotated[list[str] | None, typer.Argument(help="Two or more: runs, folders, hub ids; NAME=MODEL names one.")]


@with_sampling_options
@option_group("judging", JUDGE_OPTIONS, lambda chosen: chosen)
@option_group("reading", RESULTS_OPTIONS, lambda chosen: chosen)
def review(
    models: Models = None,
    prompts: Annotated[str, typer.Option("--prompts", help='JSON lines: {"prompt": ...} or {"messages": [...]}.')] = "",
    out: Annotated[str, typer.Option(help="The folder of the review; default: reviews/A-B.")] = "",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0: any that is free.")] = 8010,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Show the page; or only make the answers.")] = True,
    as_json: AsJson = False,
    *,
    judging: dict[str, str],
    reading: dict[str, str],
    sampling: SamplingParams,
) -> None:
    """People judge answers blindly, side by side, in a page on this machine; sign test, agreement, preference data."""
    from weitiao.core.reporter import Reporter

    console = Console(highlight=False)
    if reading["export"] and (reading["export"] not in EXPORTS or not reading["results"]):
        raise usage_error("--export pairs goes with --results FOLDER")
    if reading["results"]:
        _show(reading["results"], reading["export"], as_json, console)
        return
    if not models or not prompts:
        raise usage_error("give two or more models and --prompts FILE, or --results FOLDER")
    if page and (missing := [x for x in PACKAGES if find_spec(x) is None]):
        raise ModelError("review needs {package}. Install it with: pip install 'weitiao[serve]'", package=missing[0])
    reporter = Reporter(console)
    with reporter.spin(Message("loading torch and transformers")):
        from weitiao.pipeline.judging import judge_review
        from weitiao.pipeline.review import ReviewOptions, prepare_review
    prepared, folder = prepare_review(ReviewOptions(models, prompts, sampling, out), reporter)
    if judging["judge"]:
        judge_review(prepared, folder, judging["judge"], judging["judge_model"], reporter)
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
    print_review(people, console)
    print_judges(judges, console)
