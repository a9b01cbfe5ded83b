"""`weitiao data hard-negatives`, `out-of-scope` and `wrong-answers`: rows that show what is not right."""

from pathlib import Path
from typing import Annotated, Any

import typer

from weitiao.cli.run_command import AsJson, Columns, Encoding, print_json, split_pairs, usage_error
from weitiao.core.messages import Message

Files = Annotated[list[str], typer.Argument(help="Files of data, folders or patterns.")]
Seed = Annotated[int, typer.Option(min=0, help="Of what is drawn at random.")]


def hard_negatives(
    files: Files,
    out: Annotated[str, typer.Option(help="The file to write: query, document, negatives.")],
    run: Annotated[str, typer.Option(help="A finished run with objective embedding; default: by n-grams.")] = "",
    corpus: Annotated[
        list[str] | None, typer.Option(help="A file with further documents, one text a row; repeatable.")
    ] = None,
    num_negatives: Annotated[int, typer.Option(min=1, help="Negatives for each row.")] = 1,
    range_min: Annotated[int, typer.Option(min=0, help="How many of the best to skip.")] = 0,
    relative_margin: Annotated[
        float, typer.Option(min=0, max=1, help="With --run: how far below the right document's score a negative must be.")
    ] = 0.05,
    columns: Columns = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Find documents that look right for a query and are not, for objectives embedding and rerank."""
    from weitiao.pipeline.hard_negatives import HardNegativeRequest, MiningSettings, write_hard_negatives

    settings = MiningSettings(num_negatives, range_min, relative_margin, seed)
    sources = _sources(files, columns)
    request = HardNegativeRequest(sources, run, _sources(corpus or [], None), settings)
    counts = write_hard_negatives(request, _new_file(out))
    if json:
        print_json(counts)
        return
    print(
        Message(
            "{out}: {rows:,} rows with {negatives:,} negatives by {by}, {random:,} of them at random; {queries:,} queries, "
            "{documents:,} documents",
            out=out,
            **counts,
        )
    )
    if counts["too_similar"]:
        print(Message("not used, being as similar as the right document: {n:,} times a document", n=counts["too_similar"]))
    if counts["missing"]:
        print(Message("{n:,} negatives are missing: no document was left for them", n=counts["missing"]))


def out_of_scope(
    files: Files,
    general: Annotated[list[str], typer.Option(help="Questions out of scope: a file of any kind of rows; repeatable.")],
    answer: Annotated[str, typer.Option(help="The one sentence that answers them all.")],
    out: Annotated[str, typer.Option(help="The folder to write: train.jsonl and test.jsonl.")],
    fraction: Annotated[float, typer.Option(min=0.001, max=0.5, help="Of all training rows; 0.05 to 0.1 is usual.")] = 0.08,
    held_out: Annotated[int, typer.Option(min=0, help="Rows for evaluation, in test.jsonl.")] = 100,
    columns: Columns = None,
    encoding: Encoding = "auto",
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Make rows that teach a fixed answer to questions out of scope; then: metrics refusal_recall and over_refusal."""
    from weitiao.pipeline.negative_rows import write_out_of_scope

    if not answer.strip():
        raise usage_error("--answer: write the sentence that answers questions out of scope")
    sources = _sources(files, columns, encoding)
    counts = write_out_of_scope(sources, _sources(general, None), answer, Path(out), fraction, held_out, seed)
    if json:
        print_json(counts)
        return
    print(
        Message(
            "{out}/train.jsonl: {training:,} questions out of scope beside {in_scope:,} rows; {out}/test.jsonl: "
            "{held_out:,}. Not used: {near_in_scope:,} near questions in scope, {repeated:,} repeated, {too_long:,} too "
            "long",
            out=out,
            **counts,
        )
    )


def wrong_answers(
    files: Files,
    out: Annotated[str, typer.Option(help="The file to write.")],
    chat: Annotated[bool, typer.Option("--chat", help="Conversations for sft; default: text and label.")] = False,
    hard: Annotated[
        bool, typer.Option("--hard", help="The answer that shares most n-grams with the question; default: a random one.")
    ] = False,
    columns: Columns = None,
    encoding: Encoding = "auto",
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Make rows that ask whether an answer is right: each question with its own answer and with another row's."""
    from weitiao.pipeline.negative_rows import write_wrong_answers

    counts = write_wrong_answers(_sources(files, columns, encoding), _new_file(out), chat, hard, seed)
    if json:
        print_json(counts)
        return
    print(
        Message(
            "{out}: {rows:,} rows of {questions:,} questions; {without:,} questions have no wrong answer", out=out, **counts
        )
    )


def _sources(files: list[str], columns: list[str] | None, encoding: str = "auto") -> Any:
    from weitiao.core.recipe_sections import Source

    named = split_pairs(columns, "--columns") or None
    return tuple(Source(path=x, columns=named, encoding=encoding) for x in files)


def _new_file(out: str) -> Path:
    """The file to write."""
    file = Path(out)
    if not file.suffix:
        raise usage_error("--out {out}: name a file, as in --out rows.jsonl", out=out)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
