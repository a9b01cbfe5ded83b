"""A Run in the terminal: what `train` prints at its end: scores before and after, where to look, what to do next."""

from rich.console import Console
from rich.table import Table

from weitiao.core import events
from weitiao.core.command import command
from weitiao.core.history import result, throughput
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.core.run_html import COLUMNS
from weitiao.core.score import score_rows

COLORS = {"better": "green", "worse": "red"}


def print_result(run: Run, console: Console) -> None:
    """Scores before and after, the best step, skipped steps, and the next commands."""
    if rows := score_rows(run.scores):
        table = Table(*map(str, COLUMNS))
        table.columns[0].overflow = "fold"
        for row in rows:
            color = COLORS.get(row["verdict"], "dim")
            cells = (row["name"], row["before"], row["after"], row["change"])
            table.add_row(*cells, f"[{color}]{row['verdict_text']}[/]")
        console.print(table)
    for message in filter(None, (result(run), throughput(run))):
        console.print(str(message), soft_wrap=True)
    if skipped := len(list(run.events(events.Skip))):
        text = "{n} steps were skipped by the guard, and their rows are not trained on: {command} why {folder}"
        message = Message(text, n=skipped, command=command(), folder=run.folder)
        console.print(str(message), style="bold yellow", soft_wrap=True)
    console.print(str(Message("report: {file}", file=f"{run.folder}/report.html")), soft_wrap=True)
    if run.recipe.objective.traits.generative:
        use = Message("next: {command} chat {folder} --compare", command=command(), folder=run.folder)
    else:
        text = "next: {command} predict {folder} --input FILE --output FILE"
        use = Message(text, command=command(), folder=run.folder)
    console.print(str(use), style="dim", soft_wrap=True)
    text = "      {command} why {folder}, {command} merge {folder} FOLDER"
    console.print(str(Message(text, command=command(), folder=run.folder)), style="dim", soft_wrap=True)
