"""Checks of the vocabulary: text that the tokenizer has no token for, and rows that it makes alike.

    targets    {"date": "2024-05-03"}   ->   <unk> <unk> ... 2 0 2 4       the model can never write the braces
    texts      😀 good, 😡 bad          ->   [CLS] [UNK] [SEP], twice      the model cannot tell them apart

Tokenizers with byte tokens have a token for everything. Some others drop what they do not know, without an unknown token.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from weitiao.core.batch import IGNORE
from weitiao.core.example import Example, SourcedExample, TextLabel, TextScore, plain
from weitiao.core.finding import Finding
from weitiao.core.messages import Message
from weitiao.core.objective import LikelihoodObjective, Objective
from weitiao.data.encode import Rows

MAX_TARGET_SHARE = 0.01  # of a target's tokens: a hundred tokens with one gap, as an answer in JSON without its braces
MAX_TARGET_ROWS = 0.1  # of the rows whose target has a gap: each of these answers can never be right
MAX_TEXT_SHARE = 0.2  # of a text's tokens; below, the rest of the text still says what it is about
MAX_ROWS = 5000  # rows whose characters are looked at
MAX_NAMED = 12  # pieces of text that are named
VISIBLE = "LNPS"  # categories of characters: letters, numbers, punctuation, symbols
PIECE = re.compile(r"\w+|[^\w ]")


def check_vocabulary(
    rows: Rows, examples: Sequence[SourcedExample], objective: Objective, tokenizer: PreTrainedTokenizerBase
) -> Iterator[Finding]:
    """What the vocabulary lacks, for each task."""
    for task, part in objective.parts().items():
        own, of_task = rows.of(task), [x.without_task for x in examples if x.task == task]
        if len(own) and of_task:
            yield from _check(own, of_task, tokenizer, isinstance(part, LikelihoodObjective))


def _check(
    rows: Rows, examples: Sequence[SourcedExample], tokenizer: PreTrainedTokenizerBase, labels_are_tokens: bool
) -> Iterator[Finding]:
    """One task's rows.

    Args:
        labels_are_tokens: labels are the tokens that the model learns to write, not classes.
    """
    unknown_id = _unknown_id(tokenizer)
    if unknown_id is not None:
        ids, labels = (np.concatenate([x.values.to_numpy() for x in rows.table[c].chunks]) for c in ("input_ids", "labels"))
        if labels_are_tokens:
            yield from _unknown_targets(rows, labels, unknown_id, examples, tokenizer)
        yield from _unknown_texts(ids, labels, unknown_id, examples, tokenizer, labels_are_tokens)
    if labels_are_tokens and not _has_bytes(tokenizer):
        yield from _lost_characters(examples, tokenizer)
    yield from _same_tokens(rows, examples)


def _unknown_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of a token that means "unknown" and nothing else; None: there is none (GPT-2's also ends a text)."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "sep", "cls", "mask"))
    return None if unknown in others else unknown


def _has_bytes(tokenizer: Any) -> bool:
    """Whether every character has tokens: a rare one is neither unknown nor dropped."""
    rare = "\U000103a0\ue000"
    ids = tokenizer(rare, add_special_tokens=False).input_ids
    return bool(ids) and tokenizer.unk_token_id not in ids and tokenizer.decode(ids).strip() == rare


def _unknown_targets(
    rows: Rows, labels: np.ndarray, unknown_id: int, examples: Sequence[SourcedExample], tokenizer: Any
) -> Iterator[Finding]:
    unknown, num_targets = labels == unknown_id, int((labels != IGNORE).sum())
    if not unknown.any():
        return
    owners = np.unique(np.repeat(np.arange(len(rows)), rows.lengths)[unknown])
    share, row_share = unknown.sum() / max(num_targets, 1), len(owners) / len(rows)
    texts = [_target(x.example) for x in _examples_of(rows, owners[:MAX_ROWS], examples)]
    message = Message(
        "the base's vocabulary lacks part of the targets of {rows:,} of {total:,} rows ({share:.1%} of their tokens are "
        "unknown), so it can never write: {pieces}. Write the targets without it, or take a base whose tokenizer has it",
        rows=len(owners),
        total=len(rows),
        share=float(share),
        pieces=_unknown_pieces(texts, tokenizer),
    )
    too_many = share > MAX_TARGET_SHARE or row_share > MAX_TARGET_ROWS
    yield Finding("unknown_targets", "error" if too_many else "warning", message)


def _unknown_texts(
    ids: np.ndarray,
    labels: np.ndarray,
    unknown_id: int,
    examples: Sequence[SourcedExample],
    tokenizer: Any,
    labels_are_tokens: bool,
) -> Iterator[Finding]:
    context = labels == IGNORE if labels_are_tokens else np.ones(len(ids), bool)
    special = [x for x in tokenizer.all_special_ids if x != unknown_id]
    text = context & ~np.isin(ids, special)
    share = float((ids[text] == unknown_id).sum() / max(int(text.sum()), 1))
    if share <= MAX_TEXT_SHARE:
        message = Message("{share:.1%} of the tokens of the texts are unknown to the base", share=share)
        yield Finding("unknown_tokens", "fine", message)
        return
    texts = [x.example.input_text for x in examples[:MAX_ROWS]]
    message = Message(
        "{share:.0%} of the tokens of the texts are unknown to the base, which cannot tell them apart: {pieces}. Take a "
        "base whose tokenizer has them",
        share=share,
        pieces=_unknown_pieces(texts, tokenizer),
    )
    yield Finding("unknown_tokens", "warning", message)


def _lost_characters(examples: Sequence[SourcedExample], tokenizer: Any) -> Iterator[Finding]:
    """Characters of the targets that the tokenizer drops, without an unknown token."""
    targets = [_target(x.example) for x in examples[:MAX_ROWS]]
    with_line_breaks = sum("\n" in text.strip() for text in targets)
    if with_line_breaks and "\n" not in tokenizer.decode(_ids(tokenizer, "a\nb")):
        message = Message(
            "the base cannot write line breaks: they become spaces in the targets of {rows:,} of {total:,} rows",
            rows=with_line_breaks,
            total=len(targets),
        )
        yield Finding("line_breaks", "warning", message)
    characters = sorted({c for text in targets for c in text if unicodedata.category(c)[0] in VISIBLE})
    lost = {c for c in characters if not tokenizer.decode(_ids(tokenizer, c)).strip()}
    if not lost:
        return
    num_rows = sum(any(c in lost for c in text) for text in targets)
    message = Message(
        "the base's tokenizer drops {characters} from the targets of {rows:,} of {total:,} rows, so the model can never "
        "write them. Write the targets without them, or take a base whose tokenizer has them",
        characters=" ".join(sorted(lost)[:MAX_NAMED]),
        rows=num_rows,
        total=len(targets),
    )
    too_many = num_rows > MAX_TARGET_ROWS * len(targets)
    yield Finding("unknown_targets", "error" if too_many else "warning", message)


def _same_tokens(rows: Rows, examples: Sequence[SourcedExample]) -> Iterator[Finding]:
    """Rows with different texts and different answers that became the same tokens."""
    if not any(isinstance(x.example, (TextLabel, TextScore)) for x in examples[:MAX_ROWS]):
        return
    keys = _hashes(rows)
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(keys[order]) != 0])
    groups = [x for x in np.split(order, starts[1:]) if len(x) > 1]
    total, pairs = 0, list[tuple[Example, Example]]()
    example_of = {(x.source, x.where): x.example for x in examples} if groups else {}
    for group in groups:
        alike = [example_of[int(rows.source[i]), rows.where(int(i))] for i in group]
        if len({x.answer for x in alike}) > 1 and len({plain(x.input_text) for x in alike}) > 1:
            first = alike[0]
            other = next((x for x in alike if x.answer != first.answer and x.input_text != first.input_text), None)
            total += len(alike)
            pairs += [(first, other)] if other is not None else []
    if not pairs:
        return
    (one, other) = pairs[0]
    message = Message(
        "{n:,} rows with different texts and different answers are the same tokens to the base, for example {text!r} "
        "({answer}) and {other_text!r} ({other_answer}): it cannot tell them apart",
        n=total,
        text=one.input_text[:40],
        answer=one.answer[:40],
        other_text=other.input_text[:40],
        other_answer=other.answer[:40],
    )
    yield Finding("same_tokens", "warning", message)


# -- inside -----------------------------------------------------------------------------------------------------------


def _target(example: Example) -> str:
    """What the model learns to write."""
    turns = getattr(example, "turns", None)
    if turns is not None:
        return "\n".join(turn.content for turn in turns if turn.role == "assistant")
    return example.answer or example.full_text


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text_target=text, add_special_tokens=False).input_ids)


def _unknown_pieces(texts: Sequence[str], tokenizer: Any) -> str:
    """The most frequent unknown words or characters of some texts."""
    counts = Counter(piece for text in texts for piece in PIECE.findall(text))
    unknown = tokenizer.unk_token_id
    named: dict[str, None] = {}
    for piece, _ in counts.most_common():
        if unknown in _ids(tokenizer, piece):
            characters = [c for c in piece if unknown in _ids(tokenizer, c)]
            named |= dict.fromkeys(characters or [piece])
        if len(named) >= MAX_NAMED:
            break
    return " ".join(list(named)[:MAX_NAMED])


def _examples_of(rows: Rows, indices: Any, examples: Sequence[SourcedExample]) -> list[SourcedExample]:
    """The examples that rows were made from."""
    example_of = {(x.source, x.where): x for x in examples}
    keys = ((int(rows.source[i]), rows.where(i)) for i in map(int, indices))
    return [example_of[key] for key in keys]


def _hashes(rows: Rows) -> np.ndarray:
    """[rows] uint64: equal for rows whose tokens before the first label are equal."""
    ids, labels = (np.concatenate([x.values.to_numpy() for x in rows.table[c].chunks]) for c in ("input_ids", "labels"))
    ends = np.cumsum(rows.lengths)
    starts = ends - rows.lengths
    positions = np.arange(len(ids)) - np.repeat(starts, rows.lengths)
    first_label = np.minimum.reduceat(np.where(labels != IGNORE, positions, np.iinfo(np.int64).max), starts)
    is_input = positions <= np.repeat(first_label, rows.lengths)
    with np.errstate(over="ignore"):
        mixed = (ids.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15) ^ (positions.astype(np.uint64) + 7)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        return np.add.reduceat(np.where(is_input, mixed ^ (mixed >> np.uint64(32)), np.uint64(0)), starts)
