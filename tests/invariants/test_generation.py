"""The engine generates what plain transformers would, for every method and family; and no answer depends on its company."""

import pytest
import torch

from support.laws import attached, perturb
from support.models import DECODERS, SLIDING_WINDOW
from support.parts import VARIANTS
from weitiao.core.engine import Generation, Request, SamplingParams
from weitiao.core.generation import answer_requests
from weitiao.core.method import Method
from weitiao.core.registry import names
from weitiao.core.trainable_model import TrainableModel, reference_logits
from weitiao.model.generation.choose import choose_engine
from weitiao.model.generation.slot_engine import SlotEngine

METHODS = (*names(Method), *VARIANTS)
FAMILIES = (*DECODERS, *SLIDING_WINDOW)
PROMPTS = [[5, 9, 30, 7], [11, 12, 13, 14, 15, 16, 17], list(range(20, 60)), [5, 9, 30, 7, 8, 9, 10, 11, 12, 13, 14]]
PARAMS = SamplingParams(max_new_tokens=9, top_logprobs=320, ignore_eos=True)


def engine_of(model: TrainableModel, **settings: int) -> SlotEngine:
    engine, _ = choose_engine(model)
    for name, value in settings.items():
        setattr(engine, name, value)
    engine.__post_init__()
    return engine


def logprobs(generation: Generation) -> torch.Tensor:
    """[n, V]"""
    return torch.tensor([[x for _, x in sorted(token.top_logprobs)] for token in generation.tokens])


@torch.no_grad()
def check(model: TrainableModel, generations: list[Generation], limit: float = 1e-4) -> None:
    """Log-probabilities of all tokens are those of transformers' plain forward pass over the whole row."""
    for x in generations:
        ids = [*x.request.prompt_ids, *x.token_ids]
        expected = reference_logits(model, ids).log_softmax(-1)[len(x.request.prompt_ids) - 1 : -1]
        assert (logprobs(x) - expected).abs().max() <= limit
        assert x.token_ids == expected.argmax(-1).tolist()


def test_found() -> None:
    assert {"full", "lora", "prefix_tuning"} <= set(METHODS) and {"llama", "gpt2", "gemma", "gemma2"} <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_engine_equals_transformers(method: str, family: str) -> None:
    """max |difference of log-probabilities| <= 1e-4 in fp32; prompts in parts, rows that join and leave."""
    model = attached(method, family)
    perturb(model)
    engine = engine_of(model, max_rows=2, prefill_tokens=16)
    generations = answer_requests(model, [Request(x, PARAMS) for x in PROMPTS], engine)
    check(model, generations)
    again = answer_requests(model, [Request([*PROMPTS[3], 319, 5], PARAMS)], engine)  # on what the slots still hold
    check(model, again)
    assert again[0].cached_tokens == (len(PROMPTS[3]) if engine.forward.keeps_prefixes else 0)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_row_alone_and_in_a_batch(family: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """<= 1e-5 in fp32, and the same draws."""
    if not compiled:
        monkeypatch.setattr("weitiao.model.layers.few_rows.generation_kernels", lambda: None)
        monkeypatch.setattr("weitiao.model.layers.attention_cached.generation_kernels", lambda: None)
    model = attached("lora", family)
    perturb(model)
    params = SamplingParams(max_new_tokens=9, temperature=1.0, seed=3, top_logprobs=320, ignore_eos=True)
    requests = [Request(x, params, index=i) for x in PROMPTS for i in range(3)]
    alone = [answer_requests(model, [x])[0] for x in requests]
    for settings in ({}, {"max_rows": 3, "prefill_tokens": 7}):
        for x, y in zip(alone, answer_requests(model, requests, engine_of(model, **settings))):
            assert x.token_ids == y.token_ids
            assert (logprobs(x) - logprobs(y)).abs().max() <= 1e-5


def test_padded_engine_says_so() -> None:
    _, decision = choose_engine(attached("lora", "gemma"))
    assert decision.value == "padded" and "no hand-written block for gemma" in str(decision.reason)
    _, decision = choose_engine(attached("lora", "llama"))
    assert decision.value == "block"


def test_family_without_such_a_cache() -> None:
    """A state-space model's cache holds no keys and values: whole rows run again, and the answers are right."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=320, hidden_size=32, state_size=4, num_hidden_layers=2, eos_token_id=2)
    model = attached("full", base=MambaForCausalLM(config).eval())
    engine, decision = choose_engine(model)
    assert decision.value == "uncached"
    check(model, answer_requests(model, [Request(x, PARAMS) for x in PROMPTS[:2]], engine))
