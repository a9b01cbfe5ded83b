"""Sources -> encoded rows, and what is reported of them: their columns, bad rows, and the tokens that carry loss."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from weitiao.core.errors import DataError, RecipeError
from weitiao.core.eval_set import EvalSet
from weitiao.core.example import BadRow, Pair, SourcedExample, SourceLocation, Task, Text
from weitiao.core.finding import IN_RECIPE, Decision, Finding
from weitiao.core.messages import Message, joined
from weitiao.core.objective import Objective, Preview
from weitiao.core.recipe import Recipe
from weitiao.core.recipe_sections import Source
from weitiao.core.reporter import Reporter
from weitiao.core.run import Run
from weitiao.core.score import MIN_ROWS
from weitiao.data.cleaning import FileCleaning
from weitiao.data.encode import Encoded, Rows, encode
from weitiao.data.hub import is_hub_id, pinned_dataset
from weitiao.data.label_checks import refuse_missing_classes
from weitiao.data.later import with_settings_of
from weitiao.data.loader import InOrder
from weitiao.data.preview import draw, preview
from weitiao.data.read import Reading, TooManyBadRows, check_bad_fraction, read_sources
from weitiao.data.split import split
from weitiao.data.tokenization import ChatProcessor
from weitiao.data.window_rows import as_asked, write_dropped_turns

MAX_CHARACTERS = 1000  # of a row that is described
EVAL_BATCH_TOKENS = 2048  # no gradients are stored
BAD_ROWS = "bad_rows.jsonl"
CLEANED = "cleaned.jsonl"


@dataclass(frozen=True)
class Encoder:
    """How Examples become rows: everything that the fingerprint of the encoded rows depends on."""

    objective: Objective
    processor: ChatProcessor
    identity: str
    """Hash of the tokenizer and the chat template."""
    max_length: int
    overlong: str
    reporter: Reporter

    def encode(self, examples: list[SourcedExample], held_out: bool = False) -> Encoded:
        settings = self.processor, self.identity, self.max_length, self.overlong
        return encode(examples, self.objective, *settings, self.reporter.track, held_out)

    def hold_out(
        self,
        examples: list[SourcedExample],
        run: Run | None = None,
        bad: Sequence[BadRow] = (),
        corpus: Sequence[SourcedExample] = (),
    ) -> EvalSet | None:
        """The examples as rows to evaluate on; None if there are none.

        Rows that the objective cannot use are reported, and written to the run.

        Args:
            bad: rows of the same files that are no examples; they are counted.
            corpus: further documents, from `read_corpus`.

        Raises:
            DataError: no held-out row can be used.
        """
        if not examples:
            return None
        try:
            encoded = self.encode(examples, held_out=True)
        except DataError as error:
            raise DataError("held-out rows: {problem}", problem=error.message) from None
        self._warn(encoded, len(examples))
        if run is not None:
            write_bad_rows(run, encoded.bad)
            write_dropped_turns(run, encoded.dropped_turns)
        rows = encoded.rows
        keys = {_example_key(rows, i) for i in range(len(rows))}
        used = [x for x in examples if (x.task, x.source, x.where) in keys]
        if self.overlong == "drop_turns":
            used = [as_asked(x, self.processor, self.max_length) for x in used]
        unused = self._reasons([*bad, *encoded.bad], encoded.dropped)
        tasks: dict[str, EvalSet] = {}
        for task in filter(None, self.objective.parts()):
            task_set = eval_set(rows.of(task), [x.without_task for x in used if x.task == task])
            of_task = {x.where for x in examples if x.task == task}
            reasons = self._reasons([x for x in encoded.bad if x.where in of_task], 0)
            task_set = replace(task_set, unused=reasons, corpus=self._corpus([x for x in corpus if x.task == task]))
            if task_set.examples:
                tasks[task] = task_set
            elif run is not None:
                self.reporter.warn(
                    Message("task {task} has no held-out row: it has no scores, and does not count in `loss`.", task=task)
                )
            if 0 < len(task_set.examples) < MIN_ROWS:
                self.reporter.warn(
                    Message(
                        "task {task} has only {n} held-out rows: its scores are imprecise.",
                        task=task,
                        n=len(task_set.examples),
                    )
                )
        return replace(eval_set(rows, used), tasks=tasks, unused=unused, corpus=self._corpus(corpus) if not tasks else None)

    def _corpus(self, documents: Sequence[SourcedExample]) -> EvalSet | None:
        """Documents, encoded; None if there are none."""
        if not documents:
            return None
        return eval_set(self.encode(list(documents)).rows.of(documents[0].task), [x.without_task for x in documents])

    def _reasons(self, bad: Sequence[BadRow], num_dropped: int) -> dict[Message, int]:
        """Why rows are not measured -> how many; reasons that differ only in details are one."""
        by_template: dict[str, list[Message]] = {}
        for x in bad:
            by_template.setdefault(x.reason.template, []).append(x.reason)
        reasons = {Counter(same).most_common(1)[0][0]: len(same) for same in by_template.values()}
        if num_dropped:
            too_long = Message("longer than max_length ({max_length:,} tokens)", max_length=self.max_length)
            reasons[too_long] = num_dropped
        return reasons

    def _warn(self, encoded: Encoded, total: int) -> None:
        """Report held-out rows that are not evaluated as they are."""
        warn, max_length = self.reporter.warn, self.max_length
        if n := encoded.truncated:
            text = Message(
                "{n} of {total} held-out rows were truncated to max_length ({max_length} tokens)",
                n=n,
                total=total,
                max_length=max_length,
            )
            warn(text)
        if n := encoded.dropped:
            text = Message(
                "{n} of {total} held-out rows were dropped, being longer than max_length ({max_length} tokens)",
                n=n,
                total=total,
                max_length=max_length,
            )
            warn(text)
        if encoded.bad:
            text = Message(
                "{n} of {total} held-out rows cannot be used. First: {where}: {reason}",
                n=len(encoded.bad),
                total=total,
                where=str(encoded.bad[0].where),
                reason=encoded.bad[0].reason,
            )
            warn(text)


def eval_set(rows: Rows, examples: Sequence[SourcedExample]) -> EvalSet:
    """Encoded rows and the examples they were made from."""
    example_of = {(x.task, x.source, x.where): x.example for x in examples}
    return EvalSet(
        [x.example for x in examples],
        lambda: InOrder(rows, EVAL_BATCH_TOKENS),
        lambda row: example_of[_example_key(rows, row)],
        columns=[x.for_evaluation for x in examples],
        locations=[(x.source, x.where) for x in examples],
    )


def _example_key(rows: Rows, i: int) -> tuple[str, int, SourceLocation]:
    """Identifies the example of a row: one file may be read twice, with other columns or for another task."""
    return rows.tasks[i] if rows.tasks else "", int(rows.source[i]), rows.where(i)


def read(sources: Sequence[Source], recipe: Recipe, run: Run, reporter: Reporter) -> Reading:
    """Read sources and record their columns. Bad rows are written to the run, even if they stop it."""
    if sources is not recipe.data:
        sources = [with_settings_of(x, recipe.data) for x in sources]
    try:
        reading = read_sources(sources, recipe.objective, recipe.max_bad_fraction)
    except TooManyBadRows as error:
        write_bad_rows(run, error.bad)
        raise
    for source in filter(lambda x: is_hub_id(x.path), sources):
        pinned = pinned_dataset(source)
        reporter.report(run, Decision(f"data.revision[{source.path}]", pinned.revision, pinned.reason))
    for x in reading.columns:
        reason = IN_RECIPE if x.explicit else Message("inferred from the first rows")
        reporter.report(run, Decision(f"data.columns[{x.file}]", x.mapping.description, reason))
        for notice in x.notices():
            reporter.say(notice)
    report_cleaning(reading.cleaned, run, reporter)
    earlier = run.read("resolved.json", {}).get("columns", {})
    run.record(columns=earlier | {x.file: x.as_json() for x in reading.columns})
    write_bad_rows(run, reading.bad)
    if sources is not recipe.data:
        refuse_missing_classes(reading.examples)
    return reading


def read_and_split(recipe: Recipe, run: Run, reporter: Reporter) -> tuple[list[SourcedExample], Reading, list[Finding]]:
    """(training, validation, what the check of the columns says), as the recipe says."""
    reading = read(recipe.data, recipe, run, reporter)
    findings = reading.findings()
    if isinstance(recipe.validation, tuple):
        validation, training = read(recipe.validation, recipe, run, reporter), reading.examples
        findings = [*findings, *validation.findings()]
        reason = Message("from {files}", files=", ".join(x.path for x in recipe.validation))
    else:
        training, held_out, reason = split(reading.examples, recipe.validation)
        validation = Reading(held_out)
    held_out = validation.examples
    replayed = read_replay(recipe, run, reporter)
    training = [*training, *replayed.examples]
    reporter.report(run, Decision("validation.rows", len(held_out), reason))
    if 0 < len(held_out) < MIN_ROWS and len(recipe.objective.parts()) == 1:
        reporter.warn(
            Message(
                "only {n} rows are held out: scores on them are imprecise. Hold out more (validation).", n=len(held_out)
            )
        )
    return training, validation, [*findings, *replayed.findings()]


def read_replay(recipe: Recipe, run: Run, reporter: Reporter) -> Reading:
    """The general rows to mix in; none of them is held out."""
    if recipe.replay is None:
        return Reading()
    general = read((recipe.replay.source,), recipe, run, reporter)
    return replace(general, examples=[replace(x, source=len(recipe.data)) for x in general.examples])


def held_out_sources(recipe: Recipe) -> Sequence[Source] | None:
    """Sources of the final evaluation; None: the rows are split off the data."""
    if recipe.evaluate.data:
        return recipe.evaluate.data
    return recipe.validation if isinstance(recipe.validation, tuple) else None


def read_held_out(recipe: Recipe, sources: Sequence[Source] | None, earlier: Collection[str] = ()) -> Reading:
    """The rows of `sources`, or those that the recipe splits off, and those that cannot be used.

    Args:
        earlier: descriptions of the training files' columns.
    """
    if sources is not None:
        reading = read_sources([with_settings_of(x, recipe.data) for x in sources], recipe.objective, 1.0, earlier)
        refuse_missing_classes(reading.examples)
        return reading
    fraction = recipe.validation
    assert isinstance(fraction, float), "only a fraction is split off"
    return Reading(split(read_sources(recipe.data, recipe.objective, 1.0).examples, fraction)[1])


def read_training(recipe: Recipe, earlier: Collection[str] = ()) -> list[SourcedExample]:
    """The rows that a run was trained on, without replay.

    Args:
        earlier: descriptions of the training files' columns.
    """
    examples = read_sources(recipe.data, recipe.objective, 1.0, earlier).examples
    return examples if isinstance(recipe.validation, tuple) else split(examples, recipe.validation)[0]


def read_corpus(recipe: Recipe) -> list[SourcedExample]:
    """The documents that queries are searched among, each text once.

    Raises:
        RecipeError: the objective does not search.
    """
    sources = recipe.evaluate.corpus or ()
    for source in sources:
        if not recipe.objective.part(source.task).traits.ranks_together:
            raise RecipeError("evaluate.corpus: only objective: embedding searches among documents.")
    if not sources:
        return []
    read = read_sources(sources, recipe.objective, recipe.max_bad_fraction, example_type=Text).examples
    texts = {(x.task, x.without_task.example.full_text): x for x in reversed(read)}
    documents = [(replace(x, for_evaluation={}), Pair(text, "")) for (_, text), x in reversed(texts.items())]
    return [replace(x, example=Task(x.task, pair) if x.task else pair) for x, pair in documents]


def report_cleaning(cleaned: Sequence[FileCleaning], run: Run, reporter: Reporter) -> None:
    """Say what each rule did, and write every change with the text as it was to cleaned.jsonl."""
    if not cleaned:
        return
    for x in cleaned:
        for line in x.findings():
            reporter.say(line.message)
    old = [x for x in run.read(CLEANED) if x["file"] not in {y.file for y in cleaned}]
    run.write(CLEANED, [*old, *(record for x in cleaned for record in x.audit)])
    reporter.say(Message("the texts as they were: {file}", file=f"{run.folder}/{CLEANED}"), "dim")


def write_bad_rows(run: Run, bad: Sequence[BadRow]) -> None:
    """Add to bad_rows.jsonl: file, line, byte offset and length, code, reason, and the start of the row."""
    if bad:
        lines = [{**asdict(x.where), "code": x.code, "reason": str(x.reason), "excerpt": x.excerpt} for x in bad]
        old = run.read(BAD_ROWS)
        run.write(BAD_ROWS, old + [line for line in lines if line not in old])


def report_rows(
    encoded: Encoded,
    num_examples: int,
    objective: Objective,
    recipe: Recipe,
    processor: ChatProcessor,
    run: Run,
    reporter: Reporter,
) -> None:
    """Show and record what carries loss: counts, and one row per source; also one that lost tokens, if any did."""
    write_bad_rows(run, encoded.bad)
    check_bad_fraction(encoded.bad, num_examples, recipe.max_bad_fraction)
    rows, num_bad = encoded.rows, len(run.read(BAD_ROWS))
    facts = {
        "rows": len(rows),
        "tokens": int(rows.lengths.sum()),
        "supervised_tokens": int(rows.supervised.sum()),
        "truncated": encoded.truncated,
        "dropped": encoded.dropped,
        "split": encoded.split,
        "trimmed": encoded.trimmed,
        "bad_rows": num_bad,
        "fingerprint": rows.fingerprint,
    }
    reporter.say(_summary(facts, encoded.notes, f"{run.folder}/{BAD_ROWS}"))
    write_dropped_turns(run, encoded.dropped_turns)
    previews = _previews(encoded, objective, recipe, processor)
    for title, pieces in previews:
        reporter.say(Message("{title}:", title=title), "dim")
        reporter.console.print(draw(pieces))
    records = [{"title": title.as_json(), "pieces": pieces} for title, pieces in previews]
    run.record(data={**facts, "notes": encoded.notes}, previews=records)


def _summary(facts: dict[str, Any], notes: dict[str, int], bad_rows: str) -> Message:
    parts = [
        Message(
            "{rows:,} rows, {supervised:,} of {tokens:,} tokens carry loss ({share:.1%})",
            rows=facts["rows"],
            supervised=facts["supervised_tokens"],
            tokens=facts["tokens"],
            share=facts["supervised_tokens"] / max(facts["tokens"], 1),
        )
    ]
    if n := facts["truncated"]:
        parts.append(Message("{n:,} truncated", n=n))
    if n := facts["dropped"]:
        parts.append(Message("{n:,} dropped", n=n))
    if n := facts["split"]:
        parts.append(Message("{n:,} split", n=n))
    if n := facts["trimmed"]:
        parts.append(Message("{n:,} conversations without some of their turns", n=n))
    parts += [Message("{note}: {n:,}", note=Message(note), n=n) for note, n in notes.items()]
    if n := facts["bad_rows"]:
        parts.append(Message("{n:,} bad rows set aside in {file}", n=n, file=bad_rows))
    return joined("; ", parts) if len(parts) > 1 else parts[0]


def _previews(
    encoded: Encoded, objective: Objective, recipe: Recipe, processor: ChatProcessor
) -> list[tuple[Message, Preview]]:
    """A row of each source, and the first that lost tokens."""
    previews: list[tuple[Message, Preview]] = []
    replay = [Source(path=recipe.replay.path)] if recipe.replay else []
    for number, source in enumerate([*recipe.data, *replay]):
        ids = (encoded.rows.source == number).nonzero()[0]
        if len(ids):
            title = Message("a row of {source} (green carries loss)", source=source.path)
            previews.append((title, preview(objective, encoded.rows[int(ids[0])], processor)))
        if number in encoded.lost:
            row, lost = encoded.lost[number]
            title = Message("a row of {source} that was longer than max_length (red is lost)", source=source.path)
            previews.append((title, preview(objective, None if row is None else encoded.rows[row], processor, lost)))
    return previews


def row_describer(rows: Rows, processor: ChatProcessor) -> Callable[[int], dict[str, Any]]:
    """A function from a row id to what a person needs to find the row."""

    def describe(row: int) -> dict[str, Any]:
        text = processor.decode([int(x) for x in rows[row]["input_ids"]], skip_special_tokens=False)
        return {"row": row, "where": str(rows.where(row)), "text": text[:MAX_CHARACTERS]}

    return describe
