"""Special tokens that a text spells are encoded as text: only the chat template and the tokenizer write control tokens.

    user:   The token <|im_end|> ends a turn.        spells a special token, and must not become one
    hidden: The token \\ufdd2......\\ufdd3 ends a turn.  the same, as the template gets it
    ids:    ... `<` `|` `im` `_end` `|>` ...         and the <|im_end|> that the template writes is the special token

A text without such a string is encoded by the tokenizer itself. One with it is encoded by a copy of the tokenizer in which
the special tokens have other names: what the template wrote is renamed, what the user wrote stays, and all ids are equal.
"""

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from weitiao.core.errors import InvalidValue

OPEN, CLOSE = "\ufdd2", "\ufdd3"  # noncharacters around hidden text, whose characters are shifted to a private plane
NAME_OPEN, NAME_CLOSE = "\ufdd0", "\ufdd1"  # around the new names of special tokens
SHIFT = 0xF0000
HIDDEN = re.compile(f"{OPEN}([{chr(SHIFT)}-{chr(SHIFT + 0xFFFF)}]*){CLOSE}")
RESERVED = re.compile("[\ufdd0-\ufdd3]")


@dataclass(frozen=True)
class Encoding:
    """A text as token ids."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    """Each token's start and end in the text, in characters."""
    word_ids: list[int | None]


class ControlTokens:
    """The control tokens of a tokenizer.

    Args:
        tokenizer: of transformers.
        texts: how its control tokens are spelled.
    """

    def __init__(self, tokenizer: Any, texts: frozenset[str]) -> None:
        self.tokenizer = tokenizer
        ordered = sorted(filter(None, texts), key=lambda x: (-len(x), x))
        self._names = {text: f"{NAME_OPEN}{i}{NAME_CLOSE}" for i, text in enumerate(ordered)}
        self._starts = {text[:i] for text in ordered for i in range(1, len(text))}
        self._ends = {text[i:] for text in ordered for i in range(1, len(text))}
        self._longest = max(map(len, ordered), default=0)
        self._first_of_ends, self._last_of_starts = {x[0] for x in self._ends}, {x[-1] for x in self._starts}
        spelled = "|".join(map(re.escape, ordered)) or "(?!)"
        self._spelled = re.compile(spelled)
        self._replaced = re.compile(f"{HIDDEN.pattern}|{spelled}")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = backend.normalizer if backend is not None else None
        added = tokenizer.added_tokens_decoder.values()
        self._always_normalize = any(x.normalized for x in added if str(x.content) in texts)

    def contains(self, text: str) -> bool:
        """Whether a text spells a control token."""
        if self._spelled.search(text):
            return True
        if self._normalizer is None or (text.isascii() and not self._always_normalize):
            return False
        return bool(self._spelled.search(self._normalizer.normalize_str(text)))

    def hide(self, text: str, visible: str = "") -> str:
        """The text with all that could become a control token hidden, for the chat template. Also a part of one at an edge,
        which what the template writes next to it might complete.

        Args:
            visible: a control token that the text may write.

        Raises:
            InvalidValue: it has a noncharacter.
        """
        if RESERVED.search(text):
            raise InvalidValue("the text has a noncharacter (U+FDD0 to U+FDD3)")
        first, last = self._edges(text)
        middle = self._spelled.sub(lambda x: x.group() if x.group() == visible else _hide(x.group()), text[first:last])
        hidden = _hide(text[:first]) + middle + _hide(text[last:])
        if hidden == text and not visible and self.contains(text):  # it becomes a control token when it is normalized
            hidden = _hide(text)
        return hidden

    def encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        """A rendered text with hidden parts: the control tokens in the clear are the template's, the hidden are text."""
        pieces, position = _Pieces(), 0
        for match in self._replaced.finditer(text):
            pieces.add(text[position : match.start()], position)
            written = match.group()
            pieces.add(show(written) if written[0] == OPEN else self._names[written], match.start(), replaced=True)
            position = match.end()
        pieces.add(text[position:], position)
        encoded = self._encode("".join(pieces.texts), add_special_tokens)
        return Encoding(encoded.ids, [pieces.span(a, b) for a, b in encoded.offsets], encoded.word_ids)

    def encode_literally(self, text: str, add_special_tokens: bool = False) -> Encoding:
        """A text in which nothing is a control token.

        Args:
            add_special_tokens: with the control tokens that the tokenizer adds around a text.
        """
        if RESERVED.search(text):
            raise InvalidValue("the text has a noncharacter (U+FDD0 to U+FDD3)")
        return self._encode(text, add_special_tokens)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        backend, ids = self._renamed
        encoded = backend.encode(text, add_special_tokens=add_special_tokens)
        return Encoding([ids.get(x, x) for x in encoded.ids], encoded.offsets, encoded.word_ids)

    def _edges(self, text: str) -> tuple[int, int]:
        """Where the text begins behind the end of a control token, and ends before the start of one."""
        first, last, begin = 0, 0, text.lstrip()
        if begin[:1] in self._first_of_ends:
            first = next((n for n in range(self._longest - 1, 0, -1) if begin[:n] in self._ends), 0)
            first += (len(text) - len(begin)) if first else 0
        rest = text[first:].rstrip()
        if rest[-1:] in self._last_of_starts:
            last = next((n for n in range(self._longest - 1, 0, -1) if len(rest) >= n and rest[-n:] in self._starts), 0)
        return first, first + len(rest) - last if last else len(text)

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer with other names for its control tokens; and their ids where it numbers them differently."""
        original = self.tokenizer.backend_tokenizer
        state: dict[str, Any] = json.loads(original.to_str())
        names = self._names
        state["truncation"] = state["padding"] = None
        ids: dict[str, int] = {}
        for token in state["added_tokens"]:
            name: str = token["content"]
            ids[names.get(name, name)] = token["id"]
            if name in names:
                token |= {"content": names[name], "normalized": False}
        model: dict[str, Any] = state["model"]
        if isinstance(vocabulary := model.get("vocab"), list):  # Unigram: pieces with their scores
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
        elif vocabulary:
            model["vocab"] = {names.get(piece, piece): i for piece, i in vocabulary.items()}
        if unknown := model.get("unk_token"):
            model["unk_token"] = names.get(unknown, unknown)
        if "merges" in model:
            parts = ((x.split(" ", 1) if isinstance(x, str) else x, x) for x in model["merges"])
            model["merges"] = [x for pair, x in parts if not {*pair, "".join(pair)} & names.keys()]
        renamed = Tokenizer.from_str(json.dumps(state))
        new_ids: dict[str, Any] = {name: renamed.token_to_id(name) for name in ids}
        return renamed, {new_ids[name]: i for name, i in ids.items() if new_ids[name] != i}


def show(text: str) -> str:
    """A text with its hidden parts as they were written."""
    return HIDDEN.sub(lambda match: "".join(chr(ord(x) - SHIFT) for x in match.group(1)), text) if OPEN in text else text


def _hide(text: str) -> str:
    """White space stays, since templates strip it."""
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if start >= end:
        return text
    return text[:start] + OPEN + "".join(chr(ord(x) + SHIFT) for x in text[start:end]) + CLOSE + text[end:]


@dataclass
class _Pieces:
    """A new text made of pieces of an old one, some replaced: where each begins in both."""

    texts: list[str] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    old: list[int] = field(default_factory=list)
    replaced: list[bool] = field(default_factory=list)

    def add(self, text: str, old: int, replaced: bool = False) -> None:
        self.new.append(self.new[-1] + len(self.texts[-1]) if self.texts else 0)
        self.texts.append(text)
        self.old.append(old)
        self.replaced.append(replaced)

    def span(self, start: int, end: int) -> tuple[int, int]:
        """A span of the new text in the old one; a replaced piece is one whole."""
        first, last = bisect_right(self.new, start) - 1, bisect_right(self.new, max(start, end - 1)) - 1
        begin = self.old[first] + (0 if self.replaced[first] else start - self.new[first])
        finish = self.old[last + 1] if self.replaced[last] else self.old[last] + end - self.new[last]
        return begin, max(begin, finish)
