"""Adapters in the engine: a row's log-probabilities do not depend on its neighbours, nor on adapters that come and go."""

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import weitiao
from weitiao.core.engine import Request, SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.generation import new_engine

RANKS = (2, 9, 4, 4, 16, 3, 8, 5)


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Eight random LoRAs of different ranks and targets, as PEFT writes them."""
    made = {}
    for i, rank in enumerate(RANKS):
        targets: Any = ["q_proj", "v_proj"] if i % 3 else "all-linear"
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=targets, use_rslora=i % 2 == 0)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config)
        torch.manual_seed(i)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(torch.randn_like(weight) * 0.2)
        made[f"a{i}"] = tmp_path_factory.mktemp("adapter") / f"a{i}"
        model.save_pretrained(made[f"a{i}"])
    return made


def request(name: str, prompt: list[int], tokens: int = 12) -> Request:
    return Request(prompt, SamplingParams(tokens, temperature=1.0, seed=5, top_logprobs=3, ignore_eos=True), name)


def test_rows_as_alone(tiny_llama: Path, folders: dict[str, Path]) -> None:
    """Eleven rows through eight adapters and the base: the tokens and log-probabilities of each alone, <= 1e-5."""
    model, rng = weitiao.load(tiny_llama, adapters=folders, precision="fp32"), random.Random(0)
    chosen = [*folders, "", "a3", "a0"]
    rng.shuffle(chosen)
    requests = [request(x, [rng.randrange(3, 320) for _ in range(rng.randrange(1, 60))]) for x in chosen]
    together = model.answer(requests)
    for ask, got in zip(requests, together):
        (alone,) = model.answer([ask])
        assert alone.token_ids == got.token_ids
        for a, b in zip(alone.tokens, got.tokens):
            assert abs((a.logprob or 0.0) - (b.logprob or 0.0)) <= 1e-5
    first = next(i for i, x in enumerate(requests) if x.adapter == "a4")
    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folders["a4"]).eval()
    ids = [*requests[first].prompt_ids, *together[first].token_ids]
    with torch.no_grad():
        logprobs = merged(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(requests[first].prompt_ids)
    for i, token in enumerate(together[first].tokens):
        assert abs(float(logprobs[start + i - 1, token.id]) - (token.logprob or 0.0)) <= 1e-4


def test_adapters_change_between_steps(tiny_llama: Path, folders: dict[str, Path]) -> None:
    """While rows are answered, others are added, replaced and removed: the rows get what they would have got."""
    model = weitiao.load(tiny_llama, adapters={"a1": folders["a1"]}, precision="fp32")
    asks = [request("a1", [5, 9, 40], 30), request("", [7, 8], 30)]
    wanted = [model.answer([x])[0].token_ids for x in asks]
    engine = new_engine(model.model)
    running = [engine.submit(x) for x in asks]
    for step in range(40):
        engine.step()
        name = f"a{2 + step % 5}"
        if name in model.adapters and step % 2:
            model.remove_adapter(name)
        else:
            model.add_adapter(name, folders[name])
            engine.submit(request(name, [step + 3, 11], 3))
            while engine.load.waiting or engine.load.running > len([x for x in running if not x.is_finished]):
                engine.step()
    while not all(x.is_finished for x in running):
        engine.step()
    assert [x.token_ids for x in running] == wanted


def test_replaced_adapter_has_no_old_prefixes(tiny_llama: Path, folders: dict[str, Path]) -> None:
    """Keys and values that an engine cached with the adapter before are not taken for the new one's."""
    model = weitiao.load(tiny_llama, adapters={"a": folders["a0"]}, precision="fp32")
    ask = request("a", list(range(10, 60)))
    with model.caching_prefixes():
        (first,) = model.answer([ask])
        (again,) = model.answer([ask])
        assert again.cached_tokens > 40 and again.token_ids == first.token_ids
        model.add_adapter("a", folders["a5"])
        (replaced,) = model.answer([ask])
    assert replaced.cached_tokens == 0 and replaced.token_ids != first.token_ids
    fresh = weitiao.load(tiny_llama, adapters={"a": folders["a5"]}, precision="fp32")
    assert fresh.answer([ask])[0].token_ids == replaced.token_ids


def test_unknown_adapter_refused_at_submit(tiny_llama: Path, folders: dict[str, Path]) -> None:
    model = weitiao.load(tiny_llama, adapters={"a1": folders["a1"]}, precision="fp32")
    engine = new_engine(model.model)
    with pytest.raises(DataError, match="no adapter called 'b'; there are: a1"):
        engine.submit(request("b", [5]))
    model.add_adapter("b", folders["a2"], on_demand=True)
    generation = engine.submit(request("b", [5], 2))
    while not generation.is_finished:
        engine.step()
    assert len(generation.token_ids) == 2
