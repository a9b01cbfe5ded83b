"""Bugs that silently ruin runs, tested over all chat templates: mask, stop token, BOS, training prompt = serving prompt."""

import random
from pathlib import Path
from typing import Any

import pytest

from support.chat_templates import BARE, TEMPLATES
from support.models import make_tokenizer
from support.parts import method_config
from support.rows import chat_rows, write_jsonl
from support.runs import overfitted_model
from weitiao.core.batch import IGNORE
from weitiao.core.events import Step
from weitiao.core.example import Chat, Turn
from weitiao.core.generation import generate
from weitiao.core.method import Method
from weitiao.core.objective import Objective
from weitiao.core.registry import create, names
from weitiao.data.tokenization import ChatProcessor
from weitiao.pipeline.inference import open_model

CONVERSATIONS = 500
WORDS = "what time is it in paris 你好 世界 🦊 👩‍🚀 naïve x=1; {{'no'}} <b> \\n 'quoted' … | [INST] ## ***"
ALL = {**TEMPLATES, "bare": BARE}
ANSWERS = ("paris", "seven boxes", "the lazy dog", "你好")


def conversation(dice: random.Random, system: bool) -> list[Turn]:
    """One to four questions and answers of odd words, some with white space at their ends."""

    def words(most: int) -> str:
        said = " ".join(dice.choice(WORDS.split()) for _ in range(dice.randint(1, most)))
        return dice.choice(("", "", "\n", " ")) + said.strip() + dice.choice(("", "", "\n", "  "))

    turns = [Turn("system", words(4))] if system and dice.random() < 0.3 else []
    for _ in range(dice.randint(1, 4)):
        turns += [Turn("user", words(12)), Turn("assistant", words(12).strip() or "yes")]
    return turns


@pytest.mark.parametrize("name", ALL)
def test_mask_stop_bos_prompt_in_500_conversations(name: str) -> None:
    """Exactly the assistant's text carries loss, each turn with its stop token; BOS appears once, at the start; and the
    tokens before the last answer are exactly the prompt of generation."""
    made = ChatProcessor.make(make_tokenizer(ALL[name]))
    sft, dice, bos = create(Objective, "sft"), random.Random(name), made.tokenizer.bos_token_id
    for _ in range(CONVERSATIONS):
        turns = conversation(dice, system=name != "mistral")
        rows = sft.rows(Chat(tuple(turns)), made)
        said, ids = "", []
        for row in rows:
            ids, labels = list(row["input_ids"]), list(row["labels"])
            assert [i for i, token in enumerate(ids) if token == bos] in ([], [0])
            for i, (label, behind) in enumerate(zip(labels, [*labels[1:], IGNORE])):
                assert label == IGNORE or i + 1 == len(ids) or label == ids[i + 1], "a label is the next token"
                assert not (label != IGNORE and behind == IGNORE) or label in made.stop_ids or name == "bare"
            said += made.tokenizer.decode([x for x in labels if x != IGNORE])
            assert next(x for x in reversed(labels) if x != IGNORE) in made.stop_ids
        stops = [made.tokenizer.decode([x]) for x in made.stop_ids]
        for stop in stops:
            said = said.replace(stop, "\n")
        assert "".join(said.split()) == "".join("".join(t.content for t in turns if t.role == "assistant").split())
        prompt = made.prompt(turns[:-1])
        assert ids[: len(prompt)] == prompt


def wizard_rows(answers: tuple[str, ...]) -> list[dict]:
    """Eight questions that differ in one letter, with these answers."""
    rows = chat_rows(8, answers)
    for row, letter in zip(rows, "abcdefgh"):
        row["messages"][0]["content"] = f"wizard {letter}"
    return rows


@pytest.fixture(scope="module")
def answering_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that gives the answers to other questions: most methods can teach a random model hardly anything."""
    rows = wizard_rows((*ANSWERS[1:], *ANSWERS))
    return overfitted_model(tmp_path_factory.mktemp("answering"), tiny_llama, rows)


@pytest.mark.parametrize("method", names(Method))
def test_overfitted_model_repeats_rows_and_stops(
    method: str, answering_model: Path, train_tiny: Any, tmp_path: Path
) -> None:
    """Train and generate through the whole pipeline. A shift, a mask, a stop token or a prompt that differs between the
    two would each show: answers end by themselves and are those of the data; of their own rows, where the loss is low."""
    rows = wizard_rows(ANSWERS)
    file, base = write_jsonl(tmp_path / "few.jsonl", rows), str(answering_model)
    learning_rate = {"full": 5e-3}.get(method, 3e-2)
    train = {"steps": 60, "batch_size": 8, "learning_rate": learning_rate, "evaluate_every": 0, "save_every": 60}
    settings = {"data": [{"path": str(file)}], "validation": 0, "train": train}
    run = train_tiny(base=base, method=method_config(method, answering_model), **settings)
    loss = [x.loss for x in run.events(Step)][-1]
    if loss > 0.2:
        pytest.skip(f"{method} does not learn these rows on a tiny base (loss {loss:.2f})")
    model = open_model(str(run.folder)).model
    prompts = [model.processor.prompt([Turn("user", row["messages"][0]["content"])]) for row in rows]
    token_ids = generate(model, prompts, max_new_tokens=40)
    texts = [model.processor.decode(ids) for ids in token_ids]
    expected = [row["messages"][1]["content"] for row in rows]
    assert set(texts) <= set(ANSWERS)
    assert texts == expected or loss > 0.05
    assert sum(len(ids) < 40 for ids in token_ids) >= 0.95 * len(token_ids)
