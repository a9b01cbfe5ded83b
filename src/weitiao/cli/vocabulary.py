"""`weitiao data vocab`: how many tokens texts take, and what a larger vocabulary would save."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from weitiao.cli.run_command import AsJson, Columns, Encoding, Quiet, print_json, split_pairs, usage_error
from weitiao.core.messages import Message

if TYPE_CHECKING:
    from weitiao.pipeline.vocabulary_look import Rate, Term, VocabularyLook


def vocab(
    files: Annotated[list[str], typer.Argument(help="Files of data, folders or patterns.")],
    base: Annotated[str, typer.Option(help="A base model, or a run: whose tokenizer is measured.")],
    add: Annotated[
        list[int] | None, typer.Option(min=1, help="A number of new merges to try; repeatable; default: 2,000 to 16,000.")
    ] = None,
    scripts: Annotated[
        list[str] | None,
        typer.Option(help="A script to extend (han, kana, cyrillic, latin ...); repeatable; default: what is not Latin."),
    ] = None,
    columns: Columns = None,
    encoding: Encoding = "auto",
    json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a vocabulary: tokens a character, terms cut into many pieces, and what new merges give on held-out rows."""
    from weitiao.core.recipe_sections import Source
    from weitiao.core.reporter import Reporter
    from weitiao.core.third_party import muted
    from weitiao.core.vocabulary_section import SCRIPTS
    from weitiao.pipeline.vocabulary_look import SIZES, look_at_vocabulary

    if unknown := [x for x in scripts or () if x not in SCRIPTS]:
        raise usage_error("--scripts {name}: there are {known}", name=unknown[0], known=", ".join(SCRIPTS))
    named = split_pairs(columns, "--columns") or None
    sources = [Source(path=x, columns=named, encoding=encoding) for x in files]
    console = Console(highlight=False, quiet=quiet or json)
    with muted(True):
        look = look_at_vocabulary(sources, base, add or SIZES, scripts or (), Reporter(console))
    if json:
        print_json(look.as_json())
        return
    _show(look, console)


def _show(look: "VocabularyLook", console: Console) -> None:
    title = Message(
        "{base}: {tokens:,} tokens; {rows:,} different rows, {n:,} of them held out",
        base=look.base,
        tokens=look.num_tokens,
        rows=look.rows,
        n=look.rates[""].rows,
    )
    console.print(str(title), markup=False, soft_wrap=True)
    table = Table(*(str(x) for x in (Message("script"), Message("rows"), Message("tokens a character"))))
    for name, rate in look.rates.items():
        table.add_row(name or str(Message("all")), f"{rate.rows:,}", _interval(rate))
    console.print(table)
    for heading, terms in (
        (Message("cut into most pieces:"), look.terms),
        (Message("in Latin letters:"), look.latin),
    ):
        if terms:
            console.print(str(heading), markup=False)
            for term in terms:
                console.print(f"  {_line(term)}", markup=False, soft_wrap=True)
    if look.gains:
        _show_gains(look, console)
    for line in _verdict(look):
        console.print(str(line), markup=False, soft_wrap=True)


def _line(term: "Term") -> Message:
    return Message(
        "{text}: {pieces} ({count:,} times, {extra:,} tokens more than one each)",
        text=term.text,
        pieces=" | ".join(term.pieces),
        count=term.count,
        extra=term.extra,
    )


def _show_gains(look: "VocabularyLook", console: Console) -> None:
    assert look.before is not None
    heading = Message(
        "new merges, learnt from {characters:,} characters of other rows; measured on {n:,} held-out rows ({scripts}):",
        characters=look.num_learnt_from,
        n=look.before.rows,
        scripts=", ".join(look.scripts),
    )
    console.print(str(heading), markup=False, soft_wrap=True)
    table = Table(*(str(x) for x in (Message("add"), Message("tokens a character"), Message("of the tokens before"))))
    table.add_row("0", _interval(look.before), "100 %")
    for gain in look.gains:
        table.add_row(f"{gain.add:,}", _interval(gain.rate), f"{gain.rate.value / look.before.value:.0%}")
    console.print(table)


def _interval(rate: "Rate") -> str:
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def _verdict(look: "VocabularyLook") -> list[Message]:
    """What to write into the recipe, or why nothing."""
    if faults := [x.fault for x in look.gains if x.fault]:
        return [faults[0]]
    if look.obstacle is not None and look.scripts:
        return [Message("{reason}. Merges can be added to byte-level BPE only", reason=look.obstacle)]
    if not look.scripts:
        return [Message("The texts are in Latin letters. To try new merges for them: --scripts latin")]
    if look.proposal is None:
        return [Message("New merges would save less than a tenth of the tokens: leave the vocabulary as it is")]
    lines = [
        Message("every held-out text comes back from its tokens; rows without a new token keep their ids"),
        Message("in the recipe: vocabulary: {{add: {n}}}", n=look.proposal),
    ]
    return lines
