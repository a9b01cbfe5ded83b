"""A tokenizer with new merges: the same files, the same ids for all it had, and new tokens behind them.

    base        49,152 tokens    猫咪 -> çĮ « åĴ ª       cat -> cat
    extended    57,152 tokens    猫咪 -> 猫咪             cat -> cat      the same id

Only byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM, Mistral's newer ones) can be continued in this way. WordPiece has no
merges; Unigram's pieces compete by score, so that a new one changes how all texts are split; SentencePiece's BPE spells
bytes as tokens that no merge can begin with. Tokens that are matched before the merges (`add_tokens`) are no substitute:
they cut words apart, and travel as special entries.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from weitiao.core.errors import DataError, ModelError
from weitiao.core.extended_tokenizer import FIRST_NEW, NUM_OWN
from weitiao.core.messages import Message
from weitiao.data.vocabulary_extension.merges import NewMerge, learn_merges
from weitiao.data.vocabulary_extension.writing_scripts import script_of, scripts_to_extend

BATCH = 1000  # texts that are encoded at a time


@dataclass(frozen=True)
class Learnt:
    """New merges, and what they were learnt from."""

    merges: tuple[NewMerge, ...]
    scripts: tuple[str, ...]
    num_characters: int
    num_texts: int


def refuse_inextensible(tokenizer: Any) -> None:
    """Only byte-level BPE takes new merges.

    Raises:
        ModelError: it is another kind; the message says which.
    """
    reason = obstacle(tokenizer)
    if reason is not None:
        raise ModelError("vocabulary: {reason}. Merges can be added to byte-level BPE only", reason=reason)


def obstacle(tokenizer: Any) -> Message | None:
    """Why a tokenizer takes no new merges; None: it does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return Message("the base's tokenizer is written in Python, without the file of merges that could be continued")
    state = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        return Message("the base's tokenizer is of type {kind}, which has no merges", kind=model["type"])
    if model.get("byte_fallback") or not _is_byte_level(state):
        return Message("the base's tokenizer is a BPE of characters (SentencePiece), not of bytes")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return Message("the base's tokenizer marks the inside or the end of words, so a merge is not its two parts")
    return None


def _is_byte_level(state: Any) -> bool:
    """Whether a part of a tokenizer spells bytes as characters."""
    if isinstance(state, dict):
        parts = ((key, x) for key, x in state.items() if key in ("pre_tokenizer", "normalizer", "pretokenizers"))
        return state.get("type") == "ByteLevel" or any(_is_byte_level(x) for _, x in parts)
    return isinstance(state, list) and any(map(_is_byte_level, state))


def encoded(tokenizer: Any, texts: Sequence[str]) -> Iterator[list[int]]:
    """The ids of each text, without special tokens around it."""
    for start in range(0, len(texts), BATCH):
        yield from tokenizer(list(texts[start : start + BATCH]), add_special_tokens=False).input_ids


def words_of(tokenizer: Any, texts: Sequence[str]) -> Counter[tuple[str, ...]]:
    """The words of texts, as the tokenizer splits and spells them, each as its pieces; how often each occurs.

    Words of one piece are left out: there is nothing to merge.
    """
    backend = tokenizer.backend_tokenizer
    spelled = {i: token for token, i in backend.get_vocab(with_added_tokens=True).items()}
    added = np.array(sorted(tokenizer.added_tokens_decoder), np.int64)
    pieces: Counter[tuple[str, ...]] = Counter()
    for start in range(0, len(texts), BATCH):
        for encoding in backend.encode_batch(texts[start : start + BATCH], add_special_tokens=False):
            ids, words = np.array(encoding.ids, np.int64), np.array(encoding.word_ids, np.float64)  # no word: NaN
            if not len(ids):
                continue
            is_added = np.isin(ids, added)
            cuts = np.flatnonzero((np.diff(words) != 0) | is_added[1:] | is_added[:-1]) + 1
            tokens = [spelled[i] for i in ids.tolist()]
            bounds = [0, *cuts.tolist(), len(tokens)]
            pieces.update(tuple(tokens[a:b]) for a, b in zip(bounds, bounds[1:]) if b - a > 1)
    return pieces


def learn(tokenizer: Any, texts: Sequence[str], number: int, scripts: Sequence[str] = (), min_frequency: int = 2) -> Learnt:
    """New merges from texts.

    Args:
        number: of merges, at most: there are fewer where no further pair is frequent enough.
        scripts: a new token holds a character of one of them; (): the scripts the texts are written in, but Latin.

    Raises:
        ModelError: the tokenizer is no byte-level BPE.
        DataError: the texts are written in Latin letters.
    """
    refuse_inextensible(tokenizer)
    chosen = tuple(scripts) or scripts_to_extend(texts)
    if not chosen:
        raise DataError(
            "vocabulary: the texts are written in Latin letters, which the base's merges were made for. To extend it "
            "anyway, name the scripts: scripts: [latin]"
        )
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    words = words_of(tokenizer, texts)
    merges = learn_merges(words, vocabulary.__contains__, number, is_written_in(chosen), min_frequency)
    return Learnt(tuple(merges), chosen, sum(map(len, texts)), len(texts))


def is_written_in(scripts: Sequence[str]) -> Callable[[int], bool]:
    """Whether a code point is of one of the scripts."""
    named = frozenset(scripts)
    return cache(lambda point: script_of(point) in named)


def extended(tokenizer: Any, merges: Sequence[NewMerge]) -> Any:
    """The tokenizer with new merges behind its own; it gets the next free ids, in their order.

    Returns:
        A new one of the same class; the old one stays as it is.
    """
    refuse_inextensible(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, first = state["model"], len(tokenizer)
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)  # files of older releases
    for x in state["added_tokens"]:  # of Qwen and Llama 3, behind the vocabulary: else numbered anew, behind the new tokens
        model["vocab"].setdefault(x["content"], x["id"])
    for i, merge in enumerate(merges, first):
        assert merge.token not in model["vocab"]
        model["vocab"][merge.token] = i
        model["merges"].append(f"{merge.left} {merge.right}" if as_text else [merge.left, merge.right])
    result = copy.deepcopy(tokenizer)
    result._tokenizer = Tokenizer.from_str(json.dumps(state))
    result.init_kwargs |= {NUM_OWN: tokenizer.init_kwargs.get(NUM_OWN, first), FIRST_NEW: first}
    return result


def check_extension(base: Any, new: Any, texts: Sequence[str]) -> Iterator[Message]:
    """What is wrong with an extended tokenizer, text by text: nothing, by construction; it is proven where it is used.

    Every token of the base keeps its id, and no two have one. A text must come back as the base's tokens give it, and
    without a new token its ids must be the base's.
    """
    first, ids = len(base), new.get_vocab()
    if moved := [token for token, i in base.get_vocab().items() if ids.get(token) != i]:
        yield Message("a token of the base has another id: {token!r}", token=moved[0])
    if len(set(ids.values())) != len(ids):
        yield Message("two tokens have one id")
    for text, before, after in zip(texts, encoded(base, texts), encoded(new, texts)):
        if base.decode(before) != new.decode(after):
            yield Message("a text does not come back from its tokens: {text!r}", text=text[:60])
        if before != after and all(x < first for x in after):
            yield Message("a text has other ids, though no new token is in it: {text!r}", text=text[:60])
