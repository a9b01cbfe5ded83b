"""A Run in the terminal: what `train` prints at its end: scores before and after, where to look, what to do next."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from weitiao.core import events
from weitiao.core.command import command
from weitiao.core.example import Text as PlainText
from weitiao.core.history import result, throughput
from weitiao.core.messages import Message
from weitiao.core.run import Run
from weitiao.core.run_html import COLUMNS
from weitiao.core.score import score_notes, score_rows

COLORS = {"better": "green", "worse": "red"}
NARROW = 100  # columns of a terminal without room for the interval before training


def print_result(run: Run, console: Console) -> None:
    """Scores before and after, the best step, skipped steps, and the next commands; in a notebook the Run shows itself."""
    if console.is_jupyter or not run.can_write:
        return
    if rows := score_rows(run.scores):
        console.print(_table(rows, console.width))
    for message in score_notes(run.scores):
        console.print(Text(str(message), "dim"), soft_wrap=True)
    for message in filter(None, (result(run), throughput(run))):
        console.print(Text(str(message)), soft_wrap=True)
    facts = {"command": command(), "folder": run.folder}
    if skipped := len(list(run.events(events.Skip))):
        message = Message(
            "{n} steps were skipped by the guard, and their rows are not trained on: {command} why {folder}",
            n=skipped,
            **facts,
        )
        console.print(Text(str(message), "bold yellow"), soft_wrap=True)
    console.print(Text(str(Message("report: {file}", file=f"{run.folder}/report.html"))), soft_wrap=True)
    traits = run.recipe.objective.traits
    if traits.generative and traits.example_type is PlainText:
        use = Message('next: {command} generate {folder} "The beginning of a text" --compare', **facts)
    elif traits.generative:
        use = Message("next: {command} chat {folder} --compare", **facts)
    else:
        use = Message("next: {command} predict {folder} --input FILE --output FILE", **facts)
    more = Message("      {command} why {folder}, {command} merge {folder} FOLDER", **facts)
    for line in (use, more):
        console.print(Text(str(line), "dim"), soft_wrap=True)


def _table(rows: list[dict[str, str]], width: int) -> Table:
    """A line for each metric."""
    table = Table(*map(str, COLUMNS), box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.columns[0].overflow = "fold"
    for row in rows:
        before = row["before"] if width >= NARROW else row["before"].partition(" [")[0]
        verdict = Text(row["verdict_text"], COLORS.get(row["verdict"], "dim"))
        table.add_row(row["name"], row["n"], before, row["after"], row["change"], verdict)
    return table
