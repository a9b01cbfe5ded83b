"""Checks of the data before training: stop tokens, doubled BOS, train-validation overlap, imbalanced answers.

Each check looks at a bounded number of rows, so that it takes seconds; its message says how many.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from weitiao.core.batch import IGNORE
from weitiao.core.example import Chat, Example, SourcedExample, content_hash
from weitiao.core.extended_tokenizer import FIRST_NEW
from weitiao.core.finding import Finding, Level
from weitiao.core.messages import Message, joined
from weitiao.data.duplicates.overlap import near_duplicates
from weitiao.data.encode import Encoded, Rows

MAX_ROWS = 5000  # rows that a check looks at
MAX_TRAINING_ROWS = 20_000  # training rows that are compared with the held-out rows
IMBALANCE, MAX_ANSWERS = 0.9, 64  # share of one answer that is reported; more different answers are no closed set
MAX_NAMED = 5  # token rows that are named


def check_data(
    encoded: Encoded,
    training: Sequence[SourcedExample],
    held_out: Sequence[SourcedExample],
    tokenizer: PreTrainedTokenizerBase,
    stop_ids: Collection[int],
) -> Iterator[Finding]:
    """What can be checked without a model."""
    yield from _supervision(encoded.rows, [x.where.file for x in training])
    yield from _lengths(encoded)
    for task in dict.fromkeys(x.task for x in training):
        chats = [x for x in (y.without_task.example for y in training if y.task == task) if isinstance(x, Chat)]
        if chats:
            yield _stop_tokens(encoded.rows.of(task), stop_ids)
            yield from _answers(x.answer for x in chats)
    yield _bos_tokens(encoded.rows, getattr(tokenizer, "bos_token_id", None))
    if held_out:
        training, held_out = training[:MAX_TRAINING_ROWS], held_out[:MAX_ROWS]
        yield from _overlap(*([_text(x.without_task.example) for x in rows] for rows in (training, held_out)))


def _supervision(rows: Rows, files: Sequence[str]) -> Iterator[Finding]:
    """How many tokens carry loss, by file."""
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    names = rows.table["file"].to_pylist()
    for name, length, supervised in zip(names, rows.lengths, rows.supervised):
        totals[name] = [a + b for a, b in zip(totals[name], (1, int(length), int(supervised)))]
    for name in dict.fromkeys(files):
        num_rows, tokens, supervised = totals[name]
        message = Message(
            "{file}: {supervised:,} of {tokens:,} tokens carry loss in {rows:,} rows",
            file=name,
            supervised=supervised,
            tokens=tokens,
            rows=num_rows,
        )
        yield Finding("supervision", "fine" if supervised else "error", message)


def _lengths(encoded: Encoded) -> Iterator[Finding]:
    """What happened to rows longer than max_length."""
    total = len(encoded.rows)
    if encoded.truncated:
        message = Message("{n:,} of {total:,} rows were truncated to max_length", n=encoded.truncated, total=total)
        yield Finding("length", "warning", message)
    if encoded.dropped:
        message = Message("{n:,} rows were dropped, being longer than max_length; {total:,} are left", n=encoded.dropped,
                          total=total)  # fmt: skip
        yield Finding("length", "warning", message)
    if encoded.trimmed:
        message = Message(
            "{n:,} conversations were too long: every answer that fits is trained on once, and rows lack turns before it",
            n=encoded.trimmed,
        )
        yield Finding("length", "fine", message)
    elif not encoded.truncated and not encoded.dropped:
        split = Message("no row was truncated or dropped; {n:,} were split, with all their tokens", n=encoded.split)
        yield Finding("length", "fine", split if encoded.split else Message("no row was truncated or dropped"))


def _stop_tokens(rows: Rows, stop_ids: Collection[int]) -> Finding:
    """Each assistant turn must end with a stop token that carries loss, or the model never learns to stop."""
    turns, without_stop, first = 0, 0, ""
    for i in range(min(len(rows), MAX_ROWS)):
        labels = list(rows[i]["labels"])
        for label, following in zip(labels, [*labels[1:], IGNORE]):
            if label != IGNORE and following == IGNORE:
                turns += 1
                if int(label) not in stop_ids:
                    without_stop += 1
                    first = first or str(rows.where(i))
    if not without_stop:
        return Finding(
            "stop_token", "fine", Message("the stop token carries loss in all {turns:,} assistant turns", turns=turns)
        )
    message = Message(
        "{n:,} of {turns:,} assistant turns do not end with a stop token that carries loss; the first is in {first}",
        n=without_stop,
        turns=turns,
        first=first,
    )
    return Finding("stop_token", "error" if without_stop == turns else "warning", message)


def _bos_tokens(rows: Rows, bos_id: int | None) -> Finding:
    """A template that writes BOS, and a tokenizer that adds it again."""
    total = min(len(rows), MAX_ROWS)
    doubled = [i for i in range(total) if bos_id is not None and list(rows[i]["input_ids"][:2]) == [bos_id, bos_id]]
    if doubled:
        message = Message(
            "{n:,} of {total:,} rows start with two BOS tokens; the first is {first}",
            n=len(doubled),
            total=total,
            first=str(rows.where(doubled[0])),
        )
        return Finding("begin_token", "error", message)
    return Finding("begin_token", "fine", Message("none of {total:,} rows starts with two BOS tokens", total=total))


def unused_tokens(rows: Rows, size: int, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Rows of a trained token embedding that do not occur in the data: they get no gradient.

    Args:
        size: number of rows of the embedding.
    """
    used = np.unique(np.concatenate([x.values.to_numpy() for x in rows.table["input_ids"].chunks]))
    unused = sorted(set(range(min(size, len(tokenizer)))) - set(used.tolist()))
    if not unused:
        return Finding("token_rows", "fine", Message("all rows of the token embedding occur in the data"))
    special = [token for token in sorted(tokenizer.all_special_ids) if token in set(unused)]
    message = Message(
        "{n:,} of {size:,} rows of the token embedding do not occur in the data and get no gradient: {tokens} ...",
        n=len(unused),
        size=size,
        tokens=", ".join(str(x) for x in tokenizer.convert_ids_to_tokens([*special, *unused][:MAX_NAMED])),
    )
    return Finding("token_rows", "fine", message)


def new_tokens_in(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Whether the tokens that the recipe adds occur in the training rows: the others are only pushed away from
    what the model says.

    Args:
        tokenizer: with new merges.
    """
    first = int(tokenizer.init_kwargs[FIRST_NEW])
    used = np.unique(np.concatenate([x.values.to_numpy() for x in rows.table["input_ids"].chunks]))
    count, total = int((used >= first).sum()), len(tokenizer) - first
    message = Message(
        "{n:,} of {total:,} new tokens occur in the training rows; the others are only pushed away", n=count, total=total
    )
    return Finding("new_tokens", "fine" if count >= total / 2 else "warning", message)


def _answers(answers: Iterable[str]) -> Iterator[Finding]:
    """The distribution of a closed set of answers."""
    counts = Counter[str]()
    for answer in answers:
        counts[answer] += 1
        if len(counts) > MAX_ANSWERS:
            return
    total = counts.total()
    if not counts or total < 3 * len(counts):
        return
    shares = joined(", ", [f"{answer[:30]!r} {n / total:.0%}" for answer, n in counts.most_common(6)])
    if counts.most_common(1)[0][1] > IMBALANCE * total:
        message = Message("{n} different answers, nearly all the same: {shares}", n=len(counts), shares=shares)
        yield Finding("answers", "warning", message)
    else:
        yield Finding("answers", "fine", Message("{n} different answers: {shares}", n=len(counts), shares=shares))


def _text(example: Example) -> str:
    """The text without system messages, which whole datasets have in common."""
    if isinstance(example, Chat):
        return "\n".join(turn.content for turn in example.turns if turn.role != "system")
    return example.full_text


def _overlap(training: Sequence[str], held_out: Sequence[str]) -> Iterator[Finding]:
    """Held-out rows that are in the training data too, the same or nearly the same."""
    training_hashes = {content_hash(text) for text in training}
    same = sum(content_hash(text) in training_hashes for text in held_out)
    message = Message("{n} of {total} held-out rows are also in the training data", n=same, total=len(held_out))
    yield Finding("duplicates", _warning_if(same), message)
    near = near_duplicates(training, held_out)
    if near:
        message = Message(
            "{n} of {total} held-out rows are near-duplicates of a training row, for example {example!r}",
            n=len(near),
            total=len(held_out),
            example=held_out[min(near)][:60],
        )
    else:
        message = Message("none of {total} held-out rows is a near-duplicate of a training row", total=len(held_out))
    yield Finding("near_duplicates", _warning_if(near), message)


def _warning_if(problem: object) -> Level:
    return "warning" if problem else "fine"
