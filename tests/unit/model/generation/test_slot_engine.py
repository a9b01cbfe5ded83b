"""The engine's queue: who runs, who waits, what is cached, and how answers end."""

from typing import Any

import pytest
import torch

from support.laws import attached, perturb
from weitiao.core.engine import Engine, Generation, Grammar, Request, SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.generation import stream_answer
from weitiao.model.generation.choose import choose_engine
from weitiao.model.generation.slot_engine import SlotEngine

LONG = SamplingParams(12, ignore_eos=True)


def engine_of(family: str = "llama", **settings: Any) -> SlotEngine:
    model = attached("lora", family)
    perturb(model)
    engine, _ = choose_engine(model)
    for name, value in settings.items():
        setattr(engine, name, value)
    engine.__post_init__()
    return engine


def run(engine: Engine) -> int:
    steps = 0
    while engine.step():
        steps += 1
    return steps


def test_finished_rows_free_their_slots_at_once() -> None:
    engine = engine_of(max_rows=2)
    short, long, waiting = (engine.submit(Request([5, n, 9], SamplingParams(n, ignore_eos=True))) for n in (2, 9, 4))
    assert engine.load.waiting == 3
    assert engine.step() == [short, long] and engine.load.running == 2 and engine.load.waiting == 1
    assert engine.step() == [short, long] and short.finish_reason == "length"
    assert set(map(id, engine.step())) == {id(long), id(waiting)}
    assert run(engine) and [len(x.tokens) for x in (short, long, waiting)] == [2, 9, 4]
    assert engine.load.running == engine.load.waiting == 0 and engine.step() == []


def test_long_prompt_does_not_stop_running_answers() -> None:
    engine = engine_of(prefill_tokens=8)
    first = engine.submit(Request([5, 6, 7], LONG))
    engine.step()
    second = engine.submit(Request(list(range(3, 43)), LONG))  # five parts of eight tokens
    for n in range(2, 6):
        engine.step()
        assert len(first.tokens) == n and not second.tokens
    engine.step()
    assert len(second.tokens) == 1


def test_shared_prefix_is_computed_once() -> None:
    engine, system = engine_of(), list(range(10, 40))
    generations = [engine.submit(Request([*system, 50 + i, 7], LONG)) for i in range(6)]
    run(engine)
    assert [x.cached_tokens for x in generations] == [0] + [30] * 5
    alone = engine_of()
    again = alone.submit(generations[3].request)
    run(alone)
    assert again.token_ids == generations[3].token_ids and again.cached_tokens == 0
    assert engine.load.cached_tokens > 100
    engine.clear()
    assert engine.load.cached_tokens == 0


def test_prefixes_of_other_adapters_are_not_taken() -> None:
    engine, prompt = engine_of(), list(range(10, 40))
    one, other = (engine.submit(Request(prompt, LONG, adapter=x)) for x in ("", "b"))
    run(engine)
    assert one.cached_tokens == other.cached_tokens == 0


def test_least_recently_used_prefix_goes_first() -> None:
    engine, prompts = engine_of(max_rows=2), [list(range(n, n + 20)) for n in (10, 60, 110)]

    def cached(prompt: list[int]) -> int:
        generation = engine.submit(Request([*prompt, 200], SamplingParams(1, ignore_eos=True)))
        run(engine)
        return generation.cached_tokens

    assert [cached(x) for x in (prompts[0], prompts[1], prompts[0], prompts[2])] == [0, 0, 20, 0]
    assert cached(prompts[0]) == 20 and cached(prompts[1]) == 0


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_cancel_frees_the_slot_at_the_next_step(family: str) -> None:
    engine = engine_of(family, max_rows=1)
    first, second, third = (engine.submit(Request([5, 6, n], LONG)) for n in (7, 8, 9))
    engine.step()
    engine.cancel(first)
    engine.cancel(second)
    assert {id(x) for x in engine.step()} == {id(first), id(second)}
    assert first.finish_reason == second.finish_reason == "cancelled" and len(first.tokens) == 1
    engine.cancel(first)  # once more: nothing happens
    run(engine)
    assert third.finish_reason == "length" and len(third.tokens) == 12


def test_memory_bounds_the_slots() -> None:
    engine = engine_of(max_rows=8)
    run_one = engine.submit(Request([5, 6, 7], LONG))
    run(engine)
    forward: Any = engine.forward
    assert run_one.is_finished and forward.cache.bytes_per_token == 3 * 2 * 2 * 8 * 4
    forward.cache.max_bytes = 3 * 64 * forward.cache.bytes_per_token
    generations = [engine.submit(Request([5, 6, n], LONG)) for n in range(3, 13)]
    most = 0
    while engine.step():
        most = max(most, engine.load.running)
    assert most == 3 and all(len(x.tokens) == 12 for x in generations)
    assert forward.cache.num_slots * forward.cache.length * forward.cache.bytes_per_token <= forward.cache.max_bytes


def test_stop_ids_and_stop_sequences() -> None:
    engine = engine_of()
    whole = engine.submit(Request([5, 6, 7], LONG))
    run(engine)
    text = whole.text
    cut = engine.submit(Request([5, 6, 7], SamplingParams(12, stop=(text[4:6],), ignore_eos=True)))
    run(engine)
    assert cut.finish_reason == "stop" and cut.text == text[: text.index(text[4:6])]
    processor: Any = engine.processor
    processor.stop_ids = (whole.token_ids[3],)
    stopped = engine.submit(Request([5, 6, 7], SamplingParams(12)))
    run(engine)
    assert (
        stopped.finish_reason == "stop"
        and stopped.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[3])]
    )


def test_refused_requests() -> None:
    engine = engine_of("gpt2")
    assert engine.max_length == 256
    for prompt, message in (([], "no tokens"), ([5] * 256, "a prompt has 256 tokens, but the base takes 256")):
        with pytest.raises(DataError, match=message):
            engine.submit(Request(prompt))
    with pytest.raises(DataError, match="need a fast tokenizer"):
        engine.submit(Request([5], SamplingParams(grammar=Grammar("json"))))
    last = engine.submit(Request([5] * 250, LONG))
    run(engine)
    assert len(last.tokens) == 6 and last.finish_reason == "length"


class Digits:
    """A constraint: three tokens from 10 to 19."""

    error = ""

    def __init__(self) -> None:
        self.count = 0

    def allowed(self) -> torch.Tensor:
        return torch.zeros(320, dtype=torch.bool).index_fill_(0, torch.arange(10, 20), True)

    def accept(self, token: int) -> None:
        self.count += 1

    @property
    def is_finished(self) -> bool:
        return self.count == 3


def test_grammar_of_one_row_only() -> None:
    engine = engine_of(compile_grammar=lambda grammar, tokenizer: Digits())
    free, constrained = (
        engine.submit(Request([5, 6], LONG)),
        engine.submit(Request([5, 6], SamplingParams(12, grammar=Grammar("json"), ignore_eos=True))),
    )
    run(engine)
    assert len(constrained.tokens) == 3 and all(10 <= x < 20 for x in constrained.token_ids)
    assert constrained.finish_reason == "stop" and len(free.tokens) == 12


def test_reader_who_stops_cancels() -> None:
    engine = engine_of()
    model = attached("lora")
    stream: Any = stream_answer(model, Request([5, 6], LONG), engine)
    generation: Generation = next(stream)
    stream.close()
    assert generation.finish_reason == "cancelled" and engine.load.running == 0
