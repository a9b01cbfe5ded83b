"""Sources -> encoded rows, and the words about them: which columns, which rows were bad, what carries loss."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from weitiao.core.errors import DataError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import BadRow, SourcedExample, SourceLocation
from weitiao.core.finding import Decision
from weitiao.core.objective import Objective
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import MIN_ROWS
from weitiao.data.encode import Encoded, Rows, encode
from weitiao.data.loader import in_order
from weitiao.data.preview import draw, pieces_of, supervised_share
from weitiao.data.read import Reading, TooManyBadRows, check_bad_fraction, read_sources, split
from weitiao.data.tokenization import ChatProcessor

SHOWN = 1000  # characters of a suspect row
MEASURED_AT_ONCE = 2048  # tokens; no gradients are kept


@dataclass(frozen=True)
class Encoder:
    """How Examples become rows: everything that the cache's fingerprint depends on."""

    objective: Objective
    processor: ChatProcessor
    identity: str
    """Of the tokenizer and the template."""
    max_length: int
    overlong: str
    reporter: Reporter

    def encode(self, examples: list[SourcedExample]) -> Encoded:
        return encode(
            examples, self.objective, self.processor, self.identity, self.max_length, self.overlong, self.reporter.track
        )

    def hold_out(self, examples: list[SourcedExample], run: Run | None = None) -> EvalSet | None:
        """None where there is nothing. Rows that the objective cannot use are named, and written down in the run."""
        if not examples:
            return None
        try:
            made = self.encode(examples)
        except DataError as error:
            raise DataError(f"held-out rows: {error}") from None
        for count, words in ((made.cut, "cut to"), (made.dropped, "dropped for")):
            if count:
                self.reporter.warn(
                    f"{count} of {len(examples)} held-out rows were {words} the context of {self.max_length} tokens"
                )
        if made.bad:
            where, reason = made.bad[0].where, made.bad[0].reason
            self.reporter.warn(f"{len(made.bad)} of {len(examples)} held-out rows cannot be used. First: {where}: {reason}")
        if run is not None:
            write_bad_rows(run, made.bad)
        rows = made.rows
        there = {_place(rows, i) for i in range(len(rows))}
        kept = [x for x in examples if (x.task, x.source, x.where) in there]
        tasks = [task for task in self.objective.parts() if task]
        each = {task: eval_set(rows.of(task), [x.without_task for x in kept if x.task == task]) for task in tasks}
        for task, mine in each.items():
            if not mine.examples and run is not None:
                self.reporter.warn(f"task {task} has no held-out row: it is not measured, and does not count in `loss`.")
            if 0 < len(mine.examples) < MIN_ROWS:
                self.reporter.warn(f"task {task} has only {len(mine.examples)} held-out rows: its figures say little.")
        return replace(eval_set(rows, kept), tasks={task: x for task, x in each.items() if x.examples})


def eval_set(rows: Rows, kept: Sequence[SourcedExample]) -> EvalSet:
    """Encoded rows and the examples they were made of."""
    by_place = {(x.task, x.source, x.where): x.example for x in kept}
    batches = lambda: in_order(rows, MEASURED_AT_ONCE)  # noqa: E731
    return EvalSet([x.example for x in kept], batches, lambda row: by_place[_place(rows, row)])


def _place(rows: Rows, i: int) -> tuple[str, int, SourceLocation]:
    """Which example a row was made of: one file may be read twice, as other columns or for another task."""
    return rows.tasks[i] if rows.tasks else "", int(rows.source[i]), rows.where(i)


def read(sources: Sequence[Source], recipe: Recipe, run: Run, reporter: Reporter) -> Reading:
    """Read sources, saying which mapping was chosen; bad rows are written down even when they stop the run."""
    try:
        reading = read_sources(sources, recipe.objective, recipe.max_bad_fraction)
    except TooManyBadRows as error:
        write_bad_rows(run, error.bad)
        raise
    for file, words in reading.mappings.items():
        reporter.report(run, Decision(f"columns of {file}", words, "found by looking at the first rows"))
    write_bad_rows(run, reading.bad)
    return reading


def read_and_split(recipe: Recipe, run: Run, reporter: Reporter) -> tuple[list[SourcedExample], list[SourcedExample]]:
    """(training, validation) as the recipe says."""
    reading = read(recipe.data, recipe, run, reporter)
    if isinstance(recipe.validation, tuple):
        held = read(recipe.validation, recipe, run, reporter).examples
        training, how = reading.examples, f"from {', '.join(x.path for x in recipe.validation)}"
    else:
        training, held, how = split(reading.examples, recipe.validation)
    training = [*training, *replayed(recipe, run, reporter)]
    reporter.report(run, Decision("validation", f"{len(held)} rows", how))
    if 0 < len(held) < MIN_ROWS and len(recipe.objective.parts()) == 1:
        reporter.warn(f"only {len(held)} rows are held out: figures on them say little. Hold out more (validation).")
    return training, held


def replayed(recipe: Recipe, run: Run, reporter: Reporter) -> list[SourcedExample]:
    """The general rows to mix in; none of them is held out."""
    if recipe.replay is None:
        return []
    general = read((Source(path=recipe.replay.path, task=recipe.replay.task),), recipe, run, reporter).examples
    return [replace(x, source=len(recipe.data)) for x in general]


def held_out_sources(recipe: Recipe) -> Sequence[Source] | None:
    """Where the rows for the last word come from; None: they are split off."""
    if recipe.evaluate.data:
        return recipe.evaluate.data
    return recipe.validation if isinstance(recipe.validation, tuple) else None


def held_out_examples(recipe: Recipe, sources: Sequence[Source] | None) -> list[SourcedExample]:
    """The rows of `sources`, or those that the recipe splits off. Bad rows are passed over."""
    if sources is not None:
        return read_sources(sources, recipe.objective, 1.0).examples
    share = recipe.validation
    assert isinstance(share, float), "a source is never split off"
    return split(read_sources(recipe.data, recipe.objective, 1.0).examples, share)[1]


def write_bad_rows(run: Run, bad: Sequence[BadRow]) -> None:
    """Add to bad_rows.jsonl: file, line, byte offset, reason, the row's beginning."""
    if bad:
        lines = [{**asdict(x.where), "reason": str(x.reason), "excerpt": x.excerpt} for x in bad]
        old = run.read("bad_rows.jsonl")
        run.write("bad_rows.jsonl", old + [line for line in lines if line not in old])


def preview_rows(
    made: Encoded,
    examples: int,
    objective: Objective,
    recipe: Recipe,
    processor: ChatProcessor,
    run: Run,
    reporter: Reporter,
) -> None:
    """What carries loss: counts, and one row a source drawn; and where rows lost something, one that did."""
    write_bad_rows(run, made.bad)
    check_bad_fraction(made.bad, examples, recipe.max_bad_fraction)
    rows, bad = made.rows, len(run.read("bad_rows.jsonl"))
    share = supervised_share(int(rows.supervised.sum()), int(rows.lengths.sum()))
    facts = {"rows": len(rows), "loss": share, "cut": made.cut, "dropped": made.dropped, "split": made.split}
    put_aside = f"; {bad} bad rows put aside in {run.folder}/bad_rows.jsonl" if bad else ""
    changed = "".join(f"; {facts[key]} {key}" for key in ("cut", "dropped", "split") if facts[key])
    changed += "".join(f"; {many:,} {note}" for note, many in made.notes.items())
    reporter.console.print(f"[bold]{len(rows):,} rows[/], {share}{changed}{put_aside}", soft_wrap=True)
    drawn = []
    replay = [Source(path=recipe.replay.path)] if recipe.replay else []
    for number, source in enumerate([*recipe.data, *replay]):
        mine = (rows.source == number).nonzero()[0]
        if len(mine):
            drawn.append(
                (f"one row of {source.path} (green is learnt)", pieces_of(objective, rows[int(mine[0])], processor))
            )
        if number in made.lost:
            row, ids = made.lost[number]
            words = f"one row of {source.path} that was longer than the context (red is lost)"
            drawn.append((words, pieces_of(objective, None if row is None else rows[row], processor, ids)))
    for words, pieces in drawn:
        reporter.console.print(f"{words}:", style="dim", soft_wrap=True)
        reporter.console.print(draw(pieces))
    shown = [{"words": words, "pieces": pieces} for words, pieces in drawn]
    run.record(data={**facts, **made.notes, "bad rows": bad, "fingerprint": rows.fingerprint}, shown=shown)


def row_describer(rows: Rows, processor: ChatProcessor) -> Callable[[int], dict[str, Any]]:
    """A row's number -> what a person needs to find it."""

    def describe(row: int) -> dict[str, Any]:
        text = processor.decode([int(x) for x in rows[row]["input_ids"]], skip_special_tokens=False)
        return {"row": row, "where": str(rows.where(row)), "text": text[:SHOWN]}

    return describe
