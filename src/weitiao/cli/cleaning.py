"""`weitiao data clean`, `join` and `repair`: clean files by rules, with an audit of every change."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from weitiao.cli.option_group import option_group
from weitiao.cli.run_command import AsJson, Columns, Encoding, Quiet, print_json, split_names, split_pairs, usage_error
from weitiao.core.errors import RecipeError
from weitiao.core.messages import Message

if TYPE_CHECKING:
    from weitiao.pipeline.cleaning import Duplicates
    from weitiao.pipeline.cleaning_plan import CleaningRequest

DEFAULT, NO_RULE = "unicode,invisible,mojibake", "none"
STYLES = {"same": "dim", "removed": "red strike", "added": "green"}
SHARD = re.compile(r"(\d+)/(\d+)")


DUPLICATE_OPTIONS: dict[str, tuple[Any, Any]] = {
    "deduplicate": (
        Annotated[
            str, typer.Option(help="exact: leave out rows with the same texts; near: also rows that are nearly the same.")
        ],
        "",
    ),
    "similarity": (
        Annotated[
            float,
            typer.Option(min=0.1, max=1.0, help="For near: 0.8 is about 6 % of Chinese characters edited, 2 % of English."),
        ],
        0.8,
    ),
}
READ_OPTIONS: dict[str, tuple[Any, Any]] = {
    "cleaners": (
        Annotated[
            str,
            typer.Option(
                help="unicode,html: rules in their order; none; default: the recipe's, or unicode,invisible,mojibake."
            ),
        ],
        "",
    ),
    "columns": (Columns, None),
    "encoding": (Encoding, "auto"),
}


@option_group("reading", READ_OPTIONS, lambda chosen: chosen)
@option_group("duplicates", DUPLICATE_OPTIONS, lambda chosen: _duplicates(**chosen))
def clean(
    data: Annotated[list[str], typer.Argument(help="A recipe (its data and their cleaners), or files of data.")],
    *,
    reading: Any,
    duplicates: Any,
    out: Annotated[str, typer.Option(help="The folder to write; not for --dry-run.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what each rule would do; write nothing.")] = False,
    shard: Annotated[str, typer.Option(help="3/64: only this stretch of the files; then: weitiao data join.")] = "",
    processes: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Clean rows by rules, one file a rule: every row ends as accepted, repaired, quarantined or duplicate."""
    from weitiao.core.reporter import Reporter
    from weitiao.pipeline import cleaning, cleaning_shard

    request = _request(data, **reading)
    console = Console(highlight=False, quiet=quiet or json)
    if dry_run:
        counts = cleaning.try_out(request)
        _show(counts, console)
        _show_examples(counts, console)
    elif not out:
        raise usage_error("name the folder to write with --out, or use --dry-run")
    elif shard:
        if duplicates:
            raise usage_error("--deduplicate looks at all shards: give it to weitiao data join")
        number, shards = _shard(shard)
        plan = cleaning.make_plan(request)
        cleaning.prepare_folder(Path(out), plan, shards)
        is_new = cleaning_shard.clean_shard(request, Path(out), number, shards)
        done = Message(
            "shard {shard} is finished in {folder}" if is_new else "shard {shard} was finished already in {folder}",
            shard=shard,
            folder=out,
        )
        console.print(str(done), markup=False)
        return
    else:
        workers = processes or os.cpu_count() or 1
        counts = cleaning.clean(request, Path(out), workers, Reporter(console), duplicates)
        _show(counts, console)
        _show_folder(out, console)
    if json:
        print_json(counts)


@option_group("duplicates", DUPLICATE_OPTIONS, lambda chosen: _duplicates(**chosen))
def join(
    folder: Annotated[str, typer.Argument(help="The folder of the shards.")],
    *,
    duplicates: Any,
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Put the shards of `weitiao data clean --shard` together: the same bytes as without shards."""
    from weitiao.pipeline import cleaning

    console = Console(highlight=False, quiet=quiet or json)
    counts = cleaning.join(Path(folder), duplicates)
    _show(counts, console)
    _show_folder(folder, console)
    if json:
        print_json(counts)


def repair(
    folder: Annotated[str, typer.Argument(help="A folder that weitiao data clean has written.")],
    json: AsJson = False,
) -> None:
    """Put rows that you have mended in quarantine.jsonl (its `raw`, or `"keep": true`) back in place."""
    from weitiao.pipeline.quarantine_repair import repair as put_back

    result = put_back(Path(folder))
    if json:
        print_json({"back": result.back, "refused": list(result.refused), "untouched": result.untouched})
        return
    done = Message(
        "{back:,} rows are back in {folder}/rows.jsonl; {refused:,} still cannot be used, {untouched:,} are unchanged",
        back=result.back,
        refused=len(result.refused),
        untouched=result.untouched,
        folder=folder,
    )
    print(done)
    for line in result.refused:
        print(f"  {line}")


def _request(data: list[str], cleaners: str, columns: list[str] | None, encoding: str) -> "CleaningRequest":
    """A recipe's sources, or files, with the rules that are named here."""
    from weitiao.core.recipe import read_recipe
    from weitiao.core.recipe_sections import Source
    from weitiao.core.registry import find
    from weitiao.core.shipped_recipes import shipped_recipes
    from weitiao.pipeline.cleaning_plan import CleaningRequest

    no_rule = cleaners.strip() == NO_RULE
    named = [] if no_rule else split_names(cleaners)
    for name in named:
        find("cleaner", name)
    is_recipe = len(data) == 1 and (Path(data[0]).suffix.lower() in (".yaml", ".yml") or data[0] in shipped_recipes())
    if is_recipe:
        recipe = read_recipe(data[0])
        sources, objective = list(recipe.data), recipe.objective
        if not named and not no_rule and not any(x.cleaners for x in sources):
            raise RecipeError(
                "{file}: its data name no cleaners. Add cleaners: [unicode, html] to a source, or use --cleaners.",
                file=data[0],
            )
    else:
        columns_by_use = split_pairs(columns, "--columns") or None
        sources = [Source(path=x, columns=columns_by_use, encoding=encoding) for x in data]
        objective, named = None, named if named or no_rule else split_names(DEFAULT)
    if named or no_rule:
        sources = [Source(**{**x.model_dump(mode="json"), "cleaners": named}) for x in sources]
    return CleaningRequest.of(sources, objective)


def _duplicates(deduplicate: str, similarity: float) -> "Duplicates | None":
    from weitiao.pipeline.cleaning import Duplicates

    if deduplicate not in ("", "exact", "near"):
        raise usage_error("--deduplicate is exact or near, not {name!r}", name=deduplicate)
    return Duplicates(deduplicate == "near", similarity) if deduplicate else None


def _shard(text: str) -> tuple[int, int]:
    match = SHARD.fullmatch(text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise usage_error("--shard {text!r}: write number/shards, as in 3/64, counted from 1", text=text)
    return int(match[1]), int(match[2])


def _show(counts: dict[str, Any], console: Console) -> None:
    """What became of the rows, and what each rule did."""
    from weitiao.pipeline.cleaning_report import rule_lines

    rows = counts["rows"]
    message = Message(
        "{rows_in:,} rows: {accepted:,} accepted, {repaired:,} repaired, {quarantined:,} quarantined, "
        "{duplicate:,} duplicates",
        rows_in=rows["in"],
        **{key: x for key, x in rows.items() if key != "in"},
    )
    console.print(str(message), markup=False)
    for line in rule_lines(counts):
        console.print(f"  {line}", markup=False)


def _show_examples(counts: dict[str, Any], console: Console) -> None:
    from weitiao.core.text_difference import difference

    for rule, records in counts["examples"].items():
        console.print(Text(rule, "bold"))
        for x in records:
            position = Message("{file}, line {line}", file=x["file"], line=x["line"])
            console.print(Text(f"  {position} {x.get('field', '')}", "cyan"), soft_wrap=True)
            if "before" not in x:
                console.print(Text(f"    {x.get('left_out', x.get('hint', ''))}"), soft_wrap=True)
                continue
            pieces = difference(x["before"], x["after"])
            line = Text("    ").join([Text("")])
            for kind, piece in pieces:
                line.append(_visible(piece, kind), STYLES[kind])
            console.print(Text("    ") + line, soft_wrap=True)


def _visible(piece: str, kind: str) -> str:
    """A piece as it can be seen: line breaks and invisible characters by name; without colours, [-removed-] {+added+}."""
    visible = "".join(x if x.isprintable() else "⏎" if x == "\n" else f"<U+{ord(x):04X}>" for x in piece)
    brackets = {"removed": ("[-", "-]"), "added": ("{+", "+}")}.get(kind, ("", ""))
    return f"{brackets[0]}{visible}{brackets[1]}"


def _show_folder(out: str, console: Console) -> None:
    done = Message(
        "train on it with data={folder}/rows.jsonl; also there: quarantine.jsonl, audit.jsonl, report.html", folder=out
    )
    console.print(str(done), markup=False, soft_wrap=True)
