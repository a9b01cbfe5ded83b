"""Grammars made to hang or crash a server: each is refused, or its masks stay quick, and it ends its own answer only."""

import json
import random
import time
from typing import Any

import pytest

from support.models import make_tokenizer
from weitiao.core.engine import Grammar
from weitiao.core.errors import DataError
from weitiao.model.generation.grammar import MAX_LENGTH, MAX_PROPERTIES, GrammarConstraint, compile_grammar

MAX_SECONDS = 3.0  # processor time to compile one
MAX_MASK_SECONDS = 0.5
RNG = random.Random(0)
WORDS = ["".join(RNG.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(12)) for _ in range(4000)]
STRING = {"type": "string"}
LIMITS = ("minimum", "maximum", "minLength", "required", "const", "$ref")
VALUES = ("string", "object", "array", "integer", "null", "", "^a+$", "[", "#", "#/x", 0, -1, 1e308, None, True)


def nested(depth: int, **more: Any) -> str:
    return '{"type": "object", "properties": {"a": ' * depth + "{}" + "}}" * depth


def union(words: list[str]) -> str:
    return "(" + "|".join(words) + ")"


def objects(count: int, prefix: str) -> list[dict]:
    return [{"type": "object", "properties": {f"{prefix}{j}": STRING}} for j in range(count)]


CASES: dict[str, tuple[str, Any]] = {
    "deep": ("json_schema", nested(10_000)[:MAX_LENGTH]),
    "deeper": ("json_schema", "[" * 60_000),
    "deep in strings": ("json_schema", {"enum": ["[" * 30_000]}),
    "deep but allowed": ("json_schema", nested(20)),
    "long": ("json_schema", {"enum": WORDS * 100}),
    "enum": ("json_schema", {"enum": WORDS}),
    "properties": ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(4500)}}),
    "allowed properties": ("json_schema", {"type": "object", "properties": {f"p{i}": {} for i in range(MAX_PROPERTIES)}}),
    "product of unions": ("json_schema", {"allOf": [{"anyOf": objects(10, f"p{i}_")} for i in range(10)]}),
    "union": ("json_schema", {"anyOf": [{"properties": {x: STRING}, "required": [x]} for x in WORDS[:900]]}),
    "itself": ("json_schema", {"$ref": "#"}),
    "ring": ("json_schema", {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
    "many items": ("json_schema", {"type": "array", "items": {"type": "array", "minItems": 10**6}, "minItems": 10**6}),
    "long text": ("json_schema", {"type": "string", "minLength": 10**5, "maxLength": 10**8}),
    "patterns": ("json_schema", {"type": "string", "pattern": "^(.*a.*b.*c.*d.*e.*f){9}$"}),
    "multiple": ("json_schema", {"type": "integer", "multipleOf": 999_999_937}),
    "pattern keys": ("json_schema", {"type": "object", "patternProperties": {f".*{x}.*": STRING for x in WORDS[:900]}}),
    "backtracking": ("regex", "(a+)+b"),
    "backtracking alternatives": ("regex", "(a|a)*b"),
    "counted": ("regex", "((((a{0,100}){0,100}){0,100}){0,100}){0,100}"),
    "optional": ("regex", "(a?){5000}a{5000}"),
    "unions of anything": ("regex", union([f".*{x}" for x in WORDS])),
    "unicode classes": ("regex", r"[\p{L}\p{N}]{0,5000}" * 800),
    "groups": ("regex", "(" * 10_000 + "a" + ")*" * 10_000),
    "dots": ("regex", ".*".join("abcdefghijklmnopqrstuvwxyz" * 40)),
    "choices": ("choice", WORDS),
    "choice of quotes": ("choice", ['"', "\\", "\n", "\x00", '" | /.*/', "<|im_end|>"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.mark.parametrize("case", CASES)
def test_hostile_grammar(tokenizer: Any, case: str) -> None:
    kind, value = CASES[case]
    grammar = Grammar(kind, value if isinstance(value, str) else json.dumps(value))  # type: ignore[arg-type]
    started = time.process_time()
    try:
        state = compile_grammar(grammar, tokenizer, (2,))
    except DataError as error:
        assert len(str(error)) < 500 and "Traceback" not in str(error)
        state = None
    assert time.process_time() - started < MAX_SECONDS
    assert state is not None or case not in ("deep but allowed", "allowed properties", "choices", "backtracking")
    if state is not None:
        follow(state)
    other = compile_grammar(Grammar("choice", '["fox"]'), tokenizer, (2,))
    assert other.allowed().any(), "others are served as before"


def follow(state: Any) -> None:
    """A random walk of 80 tokens; where a limit is reached, only a stop token is left."""
    assert isinstance(state, GrammarConstraint)
    rng = random.Random(1)
    for _ in range(80):
        started = time.process_time()
        allowed = state.allowed().nonzero()[:, 0].tolist()
        assert time.process_time() - started < MAX_MASK_SECONDS
        assert allowed
        if state.error:
            assert allowed == [2] and state.is_finished and not state.is_complete
            return
        token = rng.choice(allowed)
        if token == 2 or state.is_finished:
            return
        state.accept(token)


def test_random_schemas(tokenizer: Any, full: bool) -> None:
    """Random trees of JSON Schema's keywords with random values: an error of ours, or a grammar; never anything else."""
    rng = random.Random(5)
    keywords = [*["type", "properties", "items", "enum", "anyOf", "allOf", "oneOf", "pattern"], *LIMITS]

    def value(depth: int) -> Any:
        kind = rng.randrange(8 if depth < 4 else 4)
        if kind < 4:
            return rng.choice(VALUES)
        if kind == 4:
            return [value(depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(keywords): value(depth + 1) for _ in range(rng.randrange(4))}

    outcomes = set()
    for _ in range(20_000 if full else 300):
        try:
            compile_grammar(Grammar("json_schema", json.dumps(value(0))), tokenizer, (2,)).allowed()
            outcomes.add("compiled")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"compiled", "refused"}
