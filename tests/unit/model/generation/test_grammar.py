"""Grammars as token masks: what they allow, when they end, and what is refused."""

import json
import random
import sys
from typing import Any

import jsonschema
import pytest
import torch

from support.models import make_tokenizer
from weitiao.core.engine import Grammar
from weitiao.core.errors import DataError
from weitiao.model.generation import grammar as grammars
from weitiao.model.generation.grammar import GrammarConstraint, compile_grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 9, "pattern": "^[a-z ]+$"},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["fox", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "n", "tags"],
    "additionalProperties": False,
}
STOP = 2
PADDED = 384  # rows of a model's embedding; the tokenizer has fewer tokens


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


def constraint(tokenizer: Any, kind: Any, value: Any = "", **options: Any) -> GrammarConstraint:
    text = value if isinstance(value, str) else json.dumps(value)
    made = compile_grammar(Grammar(kind, text), tokenizer, (STOP,), PADDED, **options)
    assert isinstance(made, GrammarConstraint)
    return made


def walk(tokenizer: Any, state: GrammarConstraint, seed: int, most: int = 300) -> str | None:
    """A random answer; None where it was cut."""
    rng, ids = random.Random(seed), []
    for _ in range(most):
        allowed = state.allowed().nonzero()[:, 0].tolist()
        assert allowed, "there is always a way on"
        token = rng.choice(allowed)
        if token == STOP:
            assert state.is_complete
            return tokenizer.decode(ids)
        state.accept(token)
        ids.append(token)
        if state.is_finished:
            assert state.is_complete
            return tokenizer.decode(ids)
    return None


# -- what is allowed --------------------------------------------------------------------------------------------------


def test_random_walks_follow_schema(tokenizer: Any) -> None:
    """Tokens drawn evenly, the worst model: whatever ends is valid."""
    answers = [walk(tokenizer, constraint(tokenizer, "json_schema", SCHEMA), seed) for seed in range(60)]
    whole = [x for x in answers if x is not None]
    assert len(whole) > 40 and len(set(whole)) > 30
    for text in whole:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    ("kind", "value", "fits", "misfits"),
    [
        ("regex", "(the|a) fox( jumps){1,2}", ["the fox jumps", "a fox jumps jumps"], ["the fox", "the foxjumps"]),
        ("regex", r"[0-9]{3}-\d{2}", ["123-45"], ["12-345", "123-4x"]),
        ("choice", ["yes", "no", "no, \"never\"", "你好"], ["yes", "no", "no, \"never\"", "你好"], ["maybe", "ye"]),
        ("json", "", ['{"a": [1, null, {"b": "x"}]}', "{}", '{\n  "a": true\n}'], ["[1]", '"x"', "{'a': 1}"]),
        ("json_schema", {"type": "array", "items": {"type": "integer"}}, ["[1, 2]", "[]"], ['["1"]', "{}"]),
        ("json_schema", {}, ["1", '"x"', "[{}]"], ["x"]),
    ],
)  # fmt: skip
def test_texts_that_fit(tokenizer: Any, kind: Any, value: Any, fits: list[str], misfits: list[str]) -> None:
    def is_whole(text: str) -> bool:
        state = constraint(tokenizer, kind, value)
        for token in tokenizer.encode(text, add_special_tokens=False):
            if not state.allowed()[token]:
                return False
            state.accept(token)
        return state.is_complete and bool(state.allowed()[STOP])

    assert all(map(is_whole, fits))
    assert not any(map(is_whole, misfits))


def test_stop_and_special_tokens(tokenizer: Any) -> None:
    """Stop tokens only where the answer may end; no other special token, and no row of padding, anywhere."""
    state = constraint(tokenizer, "regex", "(the )*fox")
    special = [tokenizer.convert_tokens_to_ids(x) for x in ("<|endoftext|>", "<|im_start|>")]
    for token in tokenizer.encode("the the fox", add_special_tokens=False):
        mask = state.allowed()
        assert mask.dtype == torch.bool and mask.shape == (PADDED,) and not mask[len(tokenizer) :].any()
        assert not mask[special].any() and not mask[STOP] and not state.is_finished
        state.accept(token)
    assert state.is_finished and state.is_complete and state.allowed().nonzero().tolist() == [[STOP]]
    anything = constraint(tokenizer, "regex", "(?s:.*)")
    assert not anything.allowed()[special].any() and anything.allowed()[STOP]
    assert int(anything.allowed().sum()) > 200


def test_two_stop_tokens(tokenizer: Any) -> None:
    state = compile_grammar(Grammar("choice", '["fox"]'), tokenizer, (STOP, 0))
    for token in tokenizer.encode("fox", add_special_tokens=False):
        assert not state.allowed()[[STOP, 0]].any()
        state.accept(token)
    assert state.allowed().nonzero()[:, 0].tolist() == [0, STOP]
    state.accept(0)
    assert state.is_finished


def test_spaces_end(tokenizer: Any) -> None:
    """A model that only writes spaces cannot do so for ever."""
    state, space = constraint(tokenizer, "json"), tokenizer.encode(" ", add_special_tokens=False)[0]
    state.accept(tokenizer.encode("{", add_special_tokens=False)[0])
    count = 0
    while state.allowed()[space]:
        state.accept(space)
        count += 1
        assert count < 100
    assert count > 10


def test_answers_do_not_share_state(tokenizer: Any) -> None:
    """Compiled once, and each answer starts at the beginning."""
    first, second = (constraint(tokenizer, "choice", ["fox", "dog"]) for _ in range(2))
    first.accept(tokenizer.encode("fox", add_special_tokens=False)[0])
    fresh = constraint(tokenizer, "choice", ["fox", "dog"])
    assert torch.equal(second.allowed(), fresh.allowed()) and not torch.equal(first.allowed(), fresh.allowed())


def test_compiled_once(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, compile_one = [], grammars._compile

    def counted(*args: Any) -> Any:
        calls.append(args[0].value)
        return compile_one(*args)

    monkeypatch.setattr(grammars, "_compile", counted)
    monkeypatch.setattr(grammars, "MAX_COMPILED", 3)
    for word in ("q1", "q2", "q1", "q1", "q3", "q4", "q5", "q1"):
        constraint(tokenizer, "regex", word)
    assert calls == ["q1", "q2", "q3", "q4", "q5", "q1"]


def test_restricted_distribution_is_exact(tokenizer: Any) -> None:
    """The mask leaves the probabilities of what it allows in their proportions: softmax given the set."""
    state = constraint(tokenizer, "regex", "[a-f]+")
    logits = torch.randn(PADDED, generator=torch.Generator().manual_seed(0))
    mask = state.allowed()
    masked = logits.masked_fill(~mask, float("-inf")).softmax(0)
    p = logits.softmax(0)
    torch.testing.assert_close(masked, torch.where(mask, p, 0) / p[mask].sum(), rtol=1e-5, atol=1e-8)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("json_schema", "{", "the JSON Schema is not JSON"),
        ("json_schema", "[1]", "must be a JSON object"),
        ("json_schema", {"type": "strange"}, "the JSON Schema: Invalid type: strange"),
        ("json_schema", {"not": {}}, "Unimplemented keys"),
        ("json_schema", {"$ref": "http://evil.test/x.json"}, "does not fetch resources"),
        ("json_schema", {"$ref": "file:///etc/passwd"}, "the JSON Schema: "),
        ("json_schema", {"$ref": "#/nowhere"}, "the JSON Schema: "),
        ("json_schema", "false", "must be a JSON object"),
        ("json_schema", {"type": "object", "properties": {"a": False}, "required": ["a"]}, "Unsatisfiable"),
        ("json_schema", {"x-guidance": {"whitespace_flexible": "x"}}, "the JSON Schema: "),
        ("regex", "", "the regular expression is empty"),
        ("regex", "[", "unclosed character class"),
        ("regex", "(?=x)", "look-around"),
        ("choice", "yes", "the choice is not JSON"),
        ("choice", "{}", "must be a list of texts"),
        ("choice", "[]", "must be a list of texts"),
        ("choice", [""], "must be a list of texts"),
        ("choice", ["a", 1], "must be a list of texts"),
        ("poem", "", "there is no kind 'poem'; there are: json, json_schema, regex, choice"),
    ],
)
def test_bad_grammar_refused(tokenizer: Any, kind: Any, value: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        constraint(tokenizer, kind, value)


def test_unsupported_tokenizers_refused() -> None:
    class Slow:
        eos_token_id, is_fast = 0, False

    with pytest.raises(DataError, match="need a fast tokenizer .* Slow is none"):
        compile_grammar(Grammar("json"), Slow())


def test_tokenizer_without_bytes_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"fox": 0, "dog": 1, "<eos>": 2}, unk_token="fox"))
    with pytest.raises(DataError, match="not possible with this model's tokenizer"):
        compile_grammar(Grammar("json"), PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>"))


def test_missing_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(DataError, match=r"need llguidance: pip install 'weitiao\[json\]'"):
        compile_grammar(Grammar("json"), make_tokenizer())
