"""Answers are those of the model alone: nothing of generation_config.json is inherited."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.models import save_model
from weitiao.core.decoding import decoding_with, ignored_settings, needed_tokens
from weitiao.core.engine import SamplingParams
from weitiao.core.errors import DataError
from weitiao.core.generation import decoded, generate
from weitiao.objective.objectives.seq2seq import Seq2Seq

HIDDEN = {
    "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 3, "repetition_penalty": 1.8, "no_repeat_ngram_size": 2,
    "min_length": 30, "min_new_tokens": 12, "num_beams": 4, "length_penalty": 3.0, "early_stopping": True,
    "bad_words_ids": [[5], [6], [7]], "suppress_tokens": None, "forced_eos_token_id": 2, "encoder_no_repeat_ngram_size": 2,
    "exponential_decay_length_penalty": [2, 1.5], "sequence_bias": [[[9], 9.0]],
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 9, 10], [20, 21], [7] * 9]


def with_hidden_settings(folder: Path, target: Path, settings: dict[str, Any] = HIDDEN) -> Path:
    shutil.copytree(folder, target)
    own = json.loads((folder / "generation_config.json").read_text())
    (target / "generation_config.json").write_text(json.dumps({**own, **settings}))
    return target


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart", "t5"])
def test_folders_that_differ_in_generation_config_give_equal_ids(open_model: Any, tmp_path: Path, family: str) -> None:
    folder = save_model(tmp_path / "plain", family)
    objective = "seq2seq" if family in ("bart", "t5") else "sft"
    plain, hidden = (
        open_model(base=base, objective=objective) for base in (folder, with_hidden_settings(folder, tmp_path / "hidden"))
    )
    for settings in ({}, {"num_beams": 3}) if objective == "seq2seq" else ({},):
        answers = [generate(model, PROMPTS, 20, **settings) for model in (plain, hidden)]
        assert answers[0] == answers[1]
    assert hidden.model.generation_config.repetition_penalty == 1.8  # as it was
    unused = ignored_settings(hidden)
    assert {"repetition_penalty", "no_repeat_ngram_size", "min_length", "num_beams", "bad_words_ids", "top_p"} <= set(
        unused
    )
    if objective == "sft":
        params = SamplingParams(20, temperature=1.0, seed=0)
        assert generate(hidden, PROMPTS, sampling=params) == generate(plain, PROMPTS, sampling=params)


def test_tokens_that_a_model_needs_are_kept(open_model: Any, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "plain", "bart")
    needed = {"forced_bos_token_id": 77, "suppress_tokens": [8, 9], "begin_suppress_tokens": [10]}
    model = open_model(base=with_hidden_settings(folder, tmp_path / "mbart", needed), objective="seq2seq")
    assert needed_tokens(model) | needed == needed_tokens(model)
    (answer,) = generate(model, PROMPTS[:1], 6)
    assert answer[0] == 77 and not {8, 9} & set(answer)
    plain = open_model(
        base=with_hidden_settings(folder, tmp_path / "bart", {"forced_bos_token_id": 0}), objective="seq2seq"
    )
    assert "forced_bos_token_id" not in needed_tokens(plain)  # a plain BOS: it is in the targets


def test_settings_are_put_back_after_an_error(open_model: Any) -> None:
    model = open_model()
    before = model.model.generation_config
    with pytest.raises(KeyError), decoding_with(model, (2,), max_new_tokens=3):
        raise KeyError
    assert model.model.generation_config is before


def test_settings_in_force_are_recorded(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    base = with_hidden_settings(tiny_llama, tmp_path / "hidden", {"repetition_penalty": 1.3})
    run = train_tiny(base=str(base), evaluate={"metrics": ["exact_match"], "samples": 1, "max_new_tokens": 4})
    plain = train_tiny(
        evaluate={"metrics": ["exact_match"], "samples": 1, "max_new_tokens": 4}, out=str(tmp_path / "plain")
    )
    decision = run.decisions["evaluate.decoding"]
    assert decision.value["do_sample"] is False and decision.value["repetition_penalty"] == 1.0
    assert decision.value["max_new_tokens"] == 4 and "not used" in str(decision.reason) and "1.3" in str(decision.reason)
    assert "not used" not in str(plain.decisions["evaluate.decoding"].reason)
    assert run.read("samples.jsonl") == plain.read("samples.jsonl") and run.read("row_results.json") == plain.read(
        "row_results.json"
    )


def test_answer_that_is_cut_off_is_marked(open_model: Any) -> None:
    model = open_model()
    (answer,) = generate(model, PROMPTS[:1], 5)
    assert answer.cut_at == 5 and decoded(model, answer).cut_at == 5
    model.processor.stop_ids = (answer[1],)
    (stopped,) = generate(model, PROMPTS[:1], 5)
    assert stopped.cut_at is None and stopped == answer[:1]


def test_no_more_tokens_than_positions(open_model: Any, tmp_path: Path) -> None:
    model = open_model(base=save_model(tmp_path / "gpt2", "gpt2"))
    (answer,) = generate(model, [[5] * 250], 20)
    assert len(answer) == 6
    with pytest.raises(DataError, match="a prompt has 256 tokens, but the base takes 256 with its answer"):
        generate(model, [[5] * 256], 20)


def test_room_of_seq2seq_follows_its_targets() -> None:
    assert Seq2Seq().with_room(300).max_new_tokens == 300 and Seq2Seq().with_room(3).max_new_tokens == 128
    assert Seq2Seq(max_new_tokens=9).with_room(300).max_new_tokens == 9
