"""The pre-flight's look at the data: stop tokens, doubled BOS, leaks between training and validation, lopsided answers.

Everything is looked at up to a bound, so that it takes seconds; the words say how much was looked at.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np

from weitiao.core.batch import IGNORE
from weitiao.core.example import Chat, Example, SourcedExample, content_hash, plain
from weitiao.core.finding import Finding
from weitiao.data.encode import Encoded, Rows

LOOKED_AT = 5000  # rows
COMPARED = 20_000  # training rows held against the validation rows
PIECE, NEAR = 5, 0.8  # letters a piece; share of common pieces (Jaccard) from which texts are nearly the same
LOPSIDED, MOST_ANSWERS = 0.9, 64
NAMED = 5


def inspect(
    made: Encoded,
    training: Sequence[SourcedExample],
    held: Sequence[SourcedExample],
    tokenizer: Any,
    stop_ids: Collection[int],
) -> Iterator[Finding]:
    """What can be said of the data without a model."""
    yield from _supervised(made.rows, [x.where.file for x in training])
    yield _length(made)
    for task in dict.fromkeys(x.task for x in training):
        spoken = [x for x in (y.without_task.example for y in training if y.task == task) if isinstance(x, Chat)]
        if spoken:
            yield _stops(made.rows.of(task), stop_ids)
            yield from _answers([x.answer for x in spoken])
    yield _begin(made.rows, tokenizer.bos_token_id)
    if held:
        yield from _leaks([_text(x.without_task.example) for x in training], [_text(x.without_task.example) for x in held])


def _supervised(rows: Rows, files: Sequence[str]) -> Iterator[Finding]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    names = rows.table["file"].to_pylist()
    for name, length, learnt in zip(names, rows.lengths, rows.supervised):
        counts[name] = [a + b for a, b in zip(counts[name], (1, int(length), int(learnt)))]
    for name in dict.fromkeys(files):
        many, tokens, learnt = counts[name]
        words = f"{name}: {learnt:,} of {tokens:,} tokens carry loss in {many:,} rows"
        yield Finding("supervision", "fine" if learnt else "error", words)


def _length(made: Encoded) -> Finding:
    facts = [f"{count} {words}" for count, words in ((made.cut, "cut"), (made.dropped, "dropped")) if count]
    if not facts:
        split = f"; {made.split} split, nothing lost" if made.split else ""
        return Finding("length", "fine", f"no row was cut or dropped for its length{split}")
    return Finding("length", "warning", f"{' and '.join(facts)}, being longer than the context, of {len(made.rows)} rows")


def _stops(rows: Rows, stop_ids: Collection[int]) -> Finding:
    """Each stretch of learnt tokens must end with a stop token, or the model never learns to stop."""
    turns, lacking, first = 0, 0, ""
    for i in range(min(len(rows), LOOKED_AT)):
        labels = list(rows[i]["labels"])
        for label, behind in zip(labels, [*labels[1:], IGNORE]):
            if label != IGNORE and behind == IGNORE:
                turns += 1
                if int(label) not in stop_ids:
                    lacking += 1
                    first = first or str(rows.where(i))
    if not lacking:
        return Finding("stop_token", "fine", f"the stop token carries loss in all {turns:,} assistant turns looked at")
    words = f"{lacking:,} of {turns:,} assistant turns do not end with a learnt stop token, the first in {first}"
    return Finding("stop_token", "error" if lacking == turns else "warning", words)


def _begin(rows: Rows, bos: int | None) -> Finding:
    """A template that writes BOS, and a tokenizer that writes it again."""
    many = min(len(rows), LOOKED_AT)
    twice = [i for i in range(many) if bos is not None and list(rows[i]["input_ids"][:2]) == [bos, bos]]
    if twice:
        where = rows.where(twice[0])
        return Finding("begin_token", "error", f"{len(twice)} of {many} rows begin with two BOS tokens, first {where}")
    return Finding("begin_token", "fine", f"no row begins with two BOS tokens ({many:,} looked at)")


def unused_tokens(rows: Rows, size: int, tokenizer: Any) -> Finding:
    """Which rows of a trained token embedding the data never touch: they get no gradient.

    Args:
        size: rows of the embedding.
    """
    seen = np.unique(np.concatenate([x.values.to_numpy() for x in rows.table["input_ids"].chunks]))
    unused = sorted(set(range(min(size, len(tokenizer)))) - set(seen.tolist()))
    special = [token for token in sorted(tokenizer.all_special_ids) if token in set(unused)]
    named = ", ".join(tokenizer.convert_ids_to_tokens([*special, *unused][:NAMED]))
    words = f"{len(unused):,} of {size:,} token rows occur nowhere in the data and get no gradient"
    return Finding("token_rows", "fine", f"{words}: {named} ..." if unused else "the data use every token row")


def _answers(answers: Sequence[str]) -> Iterator[Finding]:
    counts = Counter(answers)
    if not 1 <= len(counts) <= MOST_ANSWERS or len(answers) < 3 * len(counts):
        return
    most, many = counts.most_common(1)[0]
    shown = ", ".join(f"{answer[:30]!r} {100 * n / len(answers):.0f} %" for answer, n in counts.most_common(6))
    lopsided = many > LOPSIDED * len(answers)
    words = f"{len(counts)} different answers: {shown}"
    yield Finding("answers", "warning" if lopsided else "fine", words + ("; nearly all are the same" if lopsided else ""))


def _text(example: Example) -> str:
    """The words without system messages, which whole data sets have in common."""
    if isinstance(example, Chat):
        return "\n".join(turn.content for turn in example.turns if turn.role != "system")
    return example.full_text


def _leaks(training: Sequence[str], held: Sequence[str]) -> Iterator[Finding]:
    """Rows that are in training and in validation: the same, or nearly."""
    training, held = training[:COMPARED], held[:LOOKED_AT]
    known = {content_hash(text) for text in training}
    same = sum(content_hash(text) in known for text in held)
    words = f"{same} of {len(held)} held-out rows are in the training data too"
    yield Finding("duplicates", "warning" if same else "fine", words)
    near = near_duplicates(training, held)
    words = f"{len(near)} of {len(held)} held-out rows are nearly the same as a training row"
    example = f", for example {held[min(near)][:60]!r}" if near else ""
    yield Finding("near_duplicates", "warning" if near else "fine", words + example)


def near_duplicates(training: Sequence[str], held: Sequence[str]) -> dict[int, int]:
    """held row -> training row, for pairs of which at least 80 % of all pieces of five letters are common (Jaccard).

    Exact, by prefix filtering (Chaudhuri et al. 2006, "A Primitive Operator for Similarity Joins", sec. 4): sets that
    share so much share one of their rarest pieces, so only rows under the same rare piece are compared.
    """
    pieces = [[_pieces(text) for text in texts] for texts in (held, training)]
    often = Counter(piece for rows in pieces for row in rows for piece in row)
    under: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(pieces[0]):
        for piece in _rarest(row, often):
            under[piece].append(i)
    found: dict[int, int] = {}
    for j, row in enumerate(pieces[1]):
        for i in {i for piece in _rarest(row, often) for i in under.get(piece, ())} - found.keys():
            common = len(row & pieces[0][i])
            if common >= NEAR * (len(row) + len(pieces[0][i]) - common):
                found[i] = j
    return found


def _pieces(text: str) -> frozenset[int]:
    letters = plain(text)
    return frozenset(hash(letters[i : i + PIECE]) for i in range(max(1, len(letters) - PIECE + 1)))


def _rarest(row: frozenset[int], often: Counter) -> list[int]:
    """Enough of the rarest pieces that two sets with a Jaccard of NEAR have one in common."""
    many = len(row) - int(-(-NEAR * len(row) // 1)) + 1
    return sorted(row, key=lambda piece: (often[piece], piece))[:many]
