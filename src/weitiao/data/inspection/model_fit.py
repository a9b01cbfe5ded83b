"""Rows as one model reads them: tokens, what each cut-off costs, the chat template, the token that ends an answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from weitiao.core.errors import DataError, InvalidValue
from weitiao.core.example import Chat, Example
from weitiao.data.chat_checks import check_chats
from weitiao.data.inspection.lengths import cut_offs, distribution
from weitiao.data.inspection.occurrences import Occurrences
from weitiao.data.inspection.row_texts import texts_of
from weitiao.data.tokenization import ChatProcessor

RENDERED = 1000  # conversations that are encoded as in training; of the others only the texts, which is 10 times as quick
ENCODED_AT_ONCE = 512


def model_fit(
    rows: Sequence[tuple[int, Example]], total: int, processor: ChatProcessor, limit: int | None
) -> dict[str, Any]:
    """What a model makes of a sample of rows.

    Args:
        rows: index and Example of each.
        total: rows of which they are a sample.
        limit: the most tokens that the model takes.

    Returns:
        {n, tokens: distribution, cut_offs, limit, over_limit: rows, characters_per_token, special: Occurrences of rows that
        spell special tokens, chat: see `_chats`, or None}
    """
    texts = ["\n".join(x for x in (y.more, y.prompt, y.answer) if x) for y in (texts_of(z) for _, z in rows)]
    tokens = _count(texts, processor)
    chats = [(i, n, x) for n, (i, x) in enumerate(rows) if isinstance(x, Chat)]
    chat = _chats(chats, tokens, processor) if chats else None
    characters = sum(map(len, texts))
    return {
        "n": len(rows),
        "characters_per_token": characters / max(int(tokens.sum()), 1),
        "tokens": distribution(tokens),
        "cut_offs": cut_offs(tokens, total),
        "limit": limit,
        "over_limit": int((tokens > limit).sum()) if limit else 0,
        "special": Occurrences.of(i for (i, _), text in zip(rows, texts) if processor.contains_special_tokens(text)),
        "chat": chat,
    }


def _count(texts: Sequence[str], processor: ChatProcessor) -> np.ndarray:
    """(rows,) tokens of each text."""
    counts: list[int] = []
    for first in range(0, len(texts), ENCODED_AT_ONCE):
        encoded = processor.tokenizer(list(texts[first : first + ENCODED_AT_ONCE]), verbose=False)
        counts += [len(x) for x in encoded["input_ids"]]
    return np.array(counts, np.int64)


def _chats(chats: Sequence[tuple[int, int, Chat]], tokens: np.ndarray, processor: ChatProcessor) -> dict[str, Any]:
    """{template: there is one, rendered, turns, without_stop: Occurrences, refused: Occurrences, reason, findings,
    overhead: tokens of the template by row}; adds what the template writes to `tokens`."""
    if processor.template is None:
        return {"template": False}
    chosen = chats[:: -(-len(chats) // RENDERED)]
    without_stop, refused, reason, turns = Occurrences(), Occurrences(), None, 0
    facts: list[tuple[int, int]] = []
    for row, n, chat in chosen:
        try:
            rendered = processor.chat(chat.turns, chat.tools)
        except (InvalidValue, DataError) as error:
            refused.add(row)
            reason = reason or error.message
            continue
        facts.append((len(chat.turns), max(len(x.ids) for x in rendered) - int(tokens[n])))
        missing = [_unstopped(x.ids, x.assistant_mask, processor.stop_ids) for x in rendered]
        turns += sum(x[1] for x in missing)
        if any(x[0] for x in missing):
            without_stop.add(row)
    lengths, extra = (np.array(x, float) for x in (zip(*facts) if facts else ([], [])))
    slope, base = np.polyfit(lengths, extra, 1) if len(set(lengths)) > 1 else (0.0, extra.mean() if len(extra) else 0.0)
    for _, n, chat in chats:
        tokens[n] = max(1, tokens[n] + round(base + slope * len(chat.turns)))
    findings = [x for x in check_chats([x for _, _, x in chosen], processor) if x.name == "chat_content"]
    return {
        "template": True,
        "rendered": len(chosen),
        "turns": turns,
        "without_stop": without_stop,
        "refused": refused,
        "reason": reason,
        "findings": [x.as_json() for x in findings],
        "overhead": float(extra.mean()) if len(extra) else 0.0,
    }


def _unstopped(ids: Sequence[int], mask: Sequence[bool], stops: Sequence[int]) -> tuple[int, int]:
    """(answers that do not end with a stop token that carries loss, answers)."""
    ends = [i for i, x in enumerate(mask) if x and (i + 1 == len(mask) or not mask[i + 1])]
    return sum(ids[i] not in stops for i in ends), len(ends)
