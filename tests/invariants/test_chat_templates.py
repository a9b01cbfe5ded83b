"""What has silently ruined runs elsewhere, as laws over every chat template: mask, stop, BOS, serving = training."""

import random
from typing import Any

import pytest

from support.chat_templates import BARE, TEMPLATES
from support.models import make_tokenizer
from support.parts import method_config
from support.rows import chat_rows, write_jsonl
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
    """What is learnt is exactly the assistant's words, each turn with its stop token; BOS stands there once, in front;
    and what the model reads before its last answer is to the token what it is given when it is asked."""
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


@pytest.mark.parametrize("method", names(Method))
def test_overfitted_model_repeats_rows_and_stops(method: str, train_tiny: Any, tmp_path: Any) -> None:
    """Train and ask through the whole pipeline. A shift, a mask, a stop token or a prompt that differs between the two
    would each show: answers end by themselves and are answers of the data; every one its own row's where all weights
    learn (a tiny random base bounds what the others can tell apart)."""
    answers = ("paris", "seven boxes", "the lazy dog", "你好")
    rows = chat_rows(8, answers)
    for i, row in enumerate(rows):
        row["messages"][0]["content"] = f"wizard {'abcdefgh'[i]}"
    file = write_jsonl(tmp_path / "few.jsonl", rows)
    rate = {"full": 5e-3}.get(method, 3e-2)
    train = {"steps": 150, "batch_size": 8, "learning_rate": rate, "evaluate_every": 0, "save_every": 150}
    run = train_tiny(data=[{"path": str(file)}], validation=0, method=method_config(method), train=train)
    learnt = [x.loss for x in run.events(Step)][-1]
    if learnt > 0.2:
        pytest.skip(f"{method} cannot teach a tiny random base these rows (loss {learnt:.2f})")
    opened = open_model(str(run.folder))
    prompts = [opened.model.processor.prompt([Turn("user", row["messages"][0]["content"])]) for row in rows]
    written = generate(opened.model, prompts, max_new_tokens=40)
    said = [opened.model.processor.decode(ids) for ids in written]
    wanted = [row["messages"][1]["content"] for row in rows]
    assert said == wanted if method == "full" else set(said) <= set(answers)
    assert sum(len(ids) < 40 for ids in written) >= 0.95 * len(written)
