"""The Model that `weitiao.load` gives: generate in all its forms, predict, encode, the adapter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.models import save_model
from support.rows import chat_rows
from weitiao import load
from weitiao.core.engine import Request, SamplingParams
from weitiao.core.errors import DataError, ModelError
from weitiao.core.generation import generate
from weitiao.pipeline.inference import Model
from weitiao.pipeline.prompting import as_turns

CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the fox"}]


@pytest.fixture
def model(train_tiny: Any) -> Model:
    """A model that has learned an answer."""
    train = {"steps": 30, "batch_size": 8, "learning_rate": 3e-2, "evaluate_every": 30}
    return load(train_tiny(data=chat_rows(24, ("the lazy dog",)), train=train))


def test_generate_strings_lists_and_messages(model: Model) -> None:
    single = model.generate("the fox", max_new_tokens=6)
    assert isinstance(single, str) and single.startswith("the lazy")
    assert model.generate([{"role": "user", "content": "the fox"}], max_new_tokens=6) == single
    assert model.generate(["the fox", "what"], max_new_tokens=6)[0] == single
    answers = model.generate([CHAT, CHAT], max_new_tokens=6)
    assert len(answers) == 2 and answers[0] == answers[1] == model.generate(CHAT, max_new_tokens=6)
    assert model.generate([]) == []


def test_stream_is_the_same_text(model: Model) -> None:
    pieces = list(model.generate("the fox", max_new_tokens=12, stream=True))
    assert len(pieces) > 1 and "".join(pieces).strip() == model.generate("the fox", max_new_tokens=12)
    with pytest.raises(DataError, match="one answer to one prompt at a time"):
        model.generate(["a", "b"], stream=True)


def test_stream_stops_when_nobody_reads(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.model.processor, "stop_ids", (319,))  # a token that the model never learned to stop at
    with model.caching_prefixes():
        engine: Any = model._engine
        stream = model.generate("the fox", max_new_tokens=230, stream=True)
        next(stream)
        assert engine.load.running == 1
        stream.close()
        assert engine.load.running == engine.load.waiting == 0
        assert 0 < engine.load.cached_tokens < 100


def test_conversation_computes_only_what_is_new(model: Model) -> None:
    messages = [{"role": "user", "content": "the fox jumps over the lazy dog"}]
    with model.caching_prefixes():
        answer = model.generate(messages, max_new_tokens=6)
        longer = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": "what"}]
        (generation,) = model.answer([Request(model.prompt(as_turns(longer)))])
        assert generation.cached_tokens >= len(model.prompt(as_turns(messages)))
        with model.disable_adapter():
            assert model.answer([Request(model.prompt(as_turns(longer)))])[0].cached_tokens == 0, "of another model"
    assert generation.text.strip() == model.generate(longer)


def test_several_answers_and_sampling(model: Model) -> None:
    params = SamplingParams(8, temperature=1.5, seed=3)
    three = model.generate("the fox", sampling=params, n=3)
    assert len(set(three)) > 1 and model.generate("the fox", sampling=params, n=2) == three[:2]
    assert model.generate(["what", "the fox"], sampling=params, n=2)[1] == three[:2], "in other company"
    whole = model.generate("the fox", max_new_tokens=6)
    assert model.generate("the fox", sampling=SamplingParams(6, stop=(" lazy",))) == whole.partition(" lazy")[0]


def test_stream_of_an_encoder_decoder_comes_at_once(tmp_path: Path) -> None:
    t5 = load(save_model(tmp_path / "t5", "t5"))
    pieces = list(t5.generate("the fox", max_new_tokens=6, stream=True))
    assert "".join(pieces).strip() == t5.generate("the fox", max_new_tokens=6)


def test_errors_of_the_model_reach_the_reader(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **settings: Any) -> None:
        raise ValueError("out of order")

    monkeypatch.setattr("weitiao.pipeline.inference.stream_answer", fail)
    with pytest.raises(ValueError, match="out of order"):
        list(model.generate("the fox", stream=True))


@pytest.mark.parametrize("prompt", [[{"role": "king", "content": "x"}], [{"role": "user"}], [[]]])
def test_invalid_messages(model: Model, prompt: Any) -> None:
    with pytest.raises(DataError, match="a prompt is a string, or a list of .role, content. with role one of system"):
        model.generate(prompt)


def test_disable_adapter_is_the_base_model(model: Model, tiny_llama: Path) -> None:
    tuned = model.generate("the fox", max_new_tokens=6)
    with model.disable_adapter():
        base = model.generate("the fox", max_new_tokens=6)
    assert base == load(tiny_llama).generate("the fox", max_new_tokens=6) != tuned
    assert model.generate("the fox", max_new_tokens=6) == tuned


def test_method_without_a_switch(train_tiny: Any) -> None:
    model = load(train_tiny(method="full", train={"steps": 1, "learning_rate": 1e-4}))
    with pytest.raises(ModelError, match="load the base model to compare"), model.disable_adapter():
        pass


def test_saved_adapter_opens_again(model: Model, tmp_path: Path) -> None:
    model.save_adapter(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    again = load(tmp_path / "adapter")
    assert again.generate("the fox", max_new_tokens=6) == model.generate("the fox", max_new_tokens=6)


def test_base_model_has_no_adapter_to_save(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="PEFT has no adapter format"):
        load(tiny_llama).save_adapter(tmp_path / "adapter")


def test_torch_model_and_tokenizer_are_transformers_own(model: Model) -> None:
    ids = model.tokenizer("the fox", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model.torch_model(input_ids=ids).logits.shape[:2] == ids.shape
    assert model.recipe is not None and model.recipe.method.name == "lora"


def test_one_adapter_for_each_prompt(train_tiny: Any, tiny_llama: Path, tmp_path: Path) -> None:
    train = {"steps": 20, "batch_size": 8, "learning_rate": 3e-2, "evaluate_every": 20}
    runs = {
        name: train_tiny(data=chat_rows(24, (answer,)), train=train, out=str(tmp_path / name))
        for name, answer in (("fox", "the lazy dog"), ("wiz", "seven wizards"))
    }
    model = load(tiny_llama, adapters=runs)
    answers = model.generate(["what", "what", "what"], adapter=["fox", "wiz", ""], max_new_tokens=4)
    alone = [load(x).generate("what", max_new_tokens=4) for x in (runs["fox"], runs["wiz"], tiny_llama)]
    assert answers == alone and model.generate("what", adapter="wiz", max_new_tokens=4) == answers[1]


# -- heads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    return str(save_model(tmp_path / "bert", "bert"))


def test_predict_rows_in_memory_and_from_a_file(train_tiny: Any, encoder: str, tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"the quick fox {i}", "label": "ab"[i % 2]} for i in range(30)]
    model = load(train_tiny(base=encoder, data=rows, objective="classification", train={"steps": 2}))
    answers = list(model.predict([rows[0], {"id": 7}, {"text": "the fox"}]))
    assert [set(x) - {"label"} for x in answers] == [
        {"id", "text", "predicted", "probabilities"},
        {"id", "error"},
        {"text", "predicted", "probabilities"},
    ]
    assert "column 'text' is missing" in answers[1]["error"]
    texts = list(model.predict(x["text"] for x in rows[:3]))
    file = tmp_path / "new.csv"
    file.write_text("text\n" + "\n".join(x["text"] for x in rows[:3]) + "\n")
    assert [x["predicted"] for x in model.predict(file)] == [x["predicted"] for x in texts]
    assert texts[0]["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-5)
    with pytest.raises(ModelError, match="does not generate text: use predict"):
        model.generate("the fox")
    with pytest.raises(ModelError, match="encode needs a model trained with objective embedding"):
        model.encode(["the fox"])
    with pytest.raises(DataError, match="there is no file"):
        model.predict(tmp_path / "nowhere.csv")


def test_encode_gives_unit_vectors(train_tiny: Any, encoder: str) -> None:
    rows = [{"query": f"the fox {i}", "document": f"quick fox number {i}"} for i in range(30)]
    model = load(train_tiny(base=encoder, data=rows, objective="embedding", train={"steps": 2}))
    vectors = model.encode(["the fox 1", "the lazy dog", "the fox 1"])
    assert vectors.dtype == np.float32 and vectors.shape[0] == 3
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1.0, abs=1e-5)
    for same in (vectors[2], model.encode("the fox 1")):
        assert vectors[0] == pytest.approx(same, abs=1e-6)
    with pytest.raises(DataError, match="the text is empty"):
        model.encode(["the fox", " "])


def test_generation_of_the_handle_agrees(model: Model) -> None:
    """`generate` is core/generation.py's, with the chat template before and decoding after."""
    from weitiao.core.example import Turn

    ids = model.prompt((Turn("user", "the fox"),))
    assert model.decode(generate(model.model, [ids], 6)[0]) == model.generate("the fox", max_new_tokens=6)
