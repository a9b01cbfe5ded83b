"""Grammars as token masks: answers that are JSON, follow a JSON Schema or a regular expression, or are one of some texts.

    grammar + tokenizer --llguidance--> an automaton over token ids --> the tokens that may come next, after each token

Compiled once per grammar and tokenizer, copied for each answer. Stop tokens are allowed only where the grammar may end,
other special tokens and the padding of a vocabulary never. Grammars come from requests, so their size is bounded here, and
the work of compiling one and of each mask by llguidance's own limits: a hostile one is refused, or ends its own answer.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weitiao.core.engine import Grammar
from weitiao.core.errors import DataError
from weitiao.core.messages import Message
from weitiao.model.generation.constraint import TokenConstraint

MAX_LENGTH = 65_536  # characters of a grammar
MAX_DEPTH = 64  # brackets inside one another in a schema
MAX_PROPERTIES = 1_000  # keys of all objects in a schema; compiling takes time in their square
MAX_COMPILED = 128  # grammars that stay compiled, per tokenizer
MAX_TOKENIZERS = 4
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"  # between two parts of JSON; without a limit, a model may write spaces for ever
KINDS = ("json", "json_schema", "regex", "choice")


@dataclass
class GrammarConstraint:
    """The state of one answer: which tokens may come next."""

    matcher: Any
    vocabulary_size: int
    stop_ids: tuple[int, ...]
    _allowed: Tensor | None = None

    @property
    def error(self) -> str:
        """Why the grammar could not be followed any longer (a limit of llguidance), or ""; the answer then ends."""
        return _first_line(self.matcher.get_error()) if self.matcher.is_error() else ""

    @property
    def is_complete(self) -> bool:
        """Whether the answer so far is a whole one."""
        return not self.matcher.is_error() and self.matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing can follow."""
        return self.matcher.is_stopped()

    def allowed(self) -> Tensor:
        """[V] bool on the CPU: the tokens that may come next; a stop token where the answer may end."""
        if self._allowed is None:
            bits = b"" if self.matcher.is_error() else self.matcher.compute_bitmask()
            if self.matcher.is_error():  # computing it may reach a limit
                mask = np.zeros(self.vocabulary_size, np.bool_)
                mask[list(self.stop_ids)] = True
            else:
                mask = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: self.vocabulary_size]
                mask = np.pad(mask, (0, self.vocabulary_size - len(mask))).astype(np.bool_)
            self._allowed = torch.from_numpy(mask)
        return self._allowed

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        self._allowed = None
        self.matcher.consume_token(token)


@dataclass
class _Compiler:
    """llguidance's view of one tokenizer, and the grammars that were compiled for it."""

    tokenizer: Any
    """Held, so that no other one gets its id."""
    llguidance_tokenizer: Any
    compiled: OrderedDict[Grammar, Any] = field(default_factory=OrderedDict)


_compilers: OrderedDict[tuple, _Compiler] = OrderedDict()
_lock = threading.Lock()


def compile_grammar(
    grammar: Grammar, tokenizer: Any, stop_ids: Sequence[int] = (), vocabulary_size: int | None = None
) -> TokenConstraint:
    """The constraint of one answer. The first grammar of a tokenizer takes about a second more.

    Args:
        tokenizer: a fast transformers tokenizer.
        stop_ids: that end an answer; (): the tokenizer's end-of-text token.
        vocabulary_size: of the model; None: the tokenizer's.

    Raises:
        DataError: the grammar is not valid, too large, or uses what llguidance lacks; or the tokenizer is not supported; or
            llguidance is not installed.
    """
    stops = tuple(stop_ids) or (tokenizer.eos_token_id,)
    text = _check(grammar)
    with _lock:
        compiler = _compiler_of(tokenizer, stops)
        if grammar not in compiler.compiled:
            compiler.compiled[grammar] = _compile(grammar, text, compiler.llguidance_tokenizer)
            while len(compiler.compiled) > MAX_COMPILED:
                compiler.compiled.popitem(last=False)
        compiler.compiled.move_to_end(grammar)
        matcher = compiler.compiled[grammar].deep_copy()
    return GrammarConstraint(matcher, vocabulary_size or _size(tokenizer), stops)


def _compiler_of(tokenizer: Any, stop_ids: tuple[int, ...]) -> _Compiler:
    key = (id(tokenizer), stop_ids)
    if key not in _compilers:
        _compilers[key] = _Compiler(tokenizer, _llguidance_tokenizer(tokenizer, stop_ids))
        if len(_compilers) > MAX_TOKENIZERS:
            _compilers.popitem(last=False)
    _compilers.move_to_end(key)
    return _compilers[key]


def _llguidance_tokenizer(tokenizer: Any, stop_ids: tuple[int, ...]) -> Any:
    try:
        from llguidance.hf import from_tokenizer
    except ImportError:
        raise DataError(
            "answers in JSON, by a schema, an expression or a choice need llguidance: pip install 'weitiao[json]'"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(
            "answers by a grammar need a fast tokenizer (tokenizer.json); {tokenizer} is none", tokenizer=_class(tokenizer)
        )
    try:
        return from_tokenizer(tokenizer, n_vocab=_size(tokenizer), eos_token=list(stop_ids))
    except BaseException as error:  # llguidance raises what Rust panics with, too
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise DataError(
            "answers by a grammar are not possible with this model's tokenizer ({tokenizer}): {error}",
            tokenizer=_class(tokenizer),
            error=_first_line(str(error)),
        ) from None


def _size(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return max(tokenizer.get_vocab().values()) + 1


def _class(tokenizer: Any) -> str:
    return type(tokenizer).__name__


def _compile(grammar: Grammar, text: str, llguidance_tokenizer: Any) -> Any:
    from llguidance import LLMatcher

    try:
        source = _source(grammar, text)
    except ValueError as error:  # of the options that a schema may hold ("x-guidance")
        raise DataError("{what}: {reason}", what=_described(grammar), reason=_first_line(str(error))) from None
    matcher = LLMatcher(llguidance_tokenizer, source, log_level=0)
    if not matcher.is_error():
        matcher.deep_copy().compute_bitmask()  # the first mask builds what all of them need
    if matcher.is_error():
        raise DataError("{what}: {reason}", what=_described(grammar), reason=_first_line(matcher.get_error()))
    return matcher


def _source(grammar: Grammar, text: str) -> str:
    """The grammar as llguidance reads it."""
    from llguidance import LLMatcher

    if grammar.kind in ("json", "json_schema"):
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": WHITESPACE})
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    texts = (json.dumps(x, ensure_ascii=False) for x in json.loads(text))
    return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))


# -- what a grammar may be --------------------------------------------------------------------------------------------


def _check(grammar: Grammar) -> str:
    """What is compiled: a schema or a list as JSON, or the expression.

    Raises:
        DataError: it is not what its kind asks for, or too large.
    """
    if grammar.kind not in KINDS:
        raise DataError("grammar: there is no kind {kind!r}; there are: {kinds}", kind=grammar.kind, kinds=", ".join(KINDS))
    if len(grammar.value) > MAX_LENGTH:
        raise DataError(
            "{what} has {n:,} characters; at most {limit:,} are taken",
            what=_described(grammar),
            n=len(grammar.value),
            limit=MAX_LENGTH,
        )
    if grammar.kind == "json":
        return '{"type": "object"}'
    if grammar.kind == "regex":
        if not grammar.value:
            raise DataError("{what} is empty", what=_described(grammar))
        return grammar.value
    value = _parsed(grammar)
    if grammar.kind == "json_schema":
        _check_schema(grammar, value)
    elif not (isinstance(value, list) and value and all(isinstance(x, str) and x for x in value)):
        raise DataError("{what} must be a list of texts, none of them empty", what=_described(grammar))
    return json.dumps(value)


def _parsed(grammar: Grammar) -> Any:
    depth = _depth(grammar.value)
    if depth > MAX_DEPTH:
        raise DataError(
            "{what} is nested {n:,} deep; at most {limit} is taken", what=_described(grammar), n=depth, limit=MAX_DEPTH
        )
    try:
        return json.loads(grammar.value)
    except ValueError as error:
        raise DataError("{what} is not JSON: {error}", what=_described(grammar), error=str(error)) from None


def _depth(text: str) -> int:
    """How deep brackets lie in one another, outside of JSON's strings: known before a parser recurses into them."""
    depth = deepest = 0
    in_string = is_escaped = False
    for character in text:
        if in_string:
            in_string = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _check_schema(grammar: Grammar, schema: Any) -> None:
    if not isinstance(schema, dict):
        raise DataError("{what} must be a JSON object", what=_described(grammar))
    count, rest = 0, [schema]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            count += len(value.get("properties") or ()) if isinstance(value.get("properties"), dict) else 0
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    if count > MAX_PROPERTIES:
        raise DataError(
            "{what} has {n:,} properties; at most {limit:,} are taken",
            what=_described(grammar),
            n=count,
            limit=MAX_PROPERTIES,
        )


def _described(grammar: Grammar) -> Message:
    if grammar.kind == "regex":
        return Message("the regular expression")
    return Message("the choice") if grammar.kind == "choice" else Message("the JSON Schema")


def _first_line(error: str) -> str:
    """llguidance adds its state to some messages, which may be long."""
    return error.split("\n<state>")[0].strip()[:300]
