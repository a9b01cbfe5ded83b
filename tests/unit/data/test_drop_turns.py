"""Conversations that are too long: exchanges, what is dropped first, rows for training, and the same in use."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.agent_templates import family_stops, family_tokenizer
from support.command import weitiao
from support.models import make_tokenizer
from support.rows import write_jsonl
from weitiao.core.batch import IGNORE
from weitiao.core.example import Chat, SourcedExample, SourceLocation, ToolCall, Turn
from weitiao.data.chat.drop_turns import drop_order, keep_last
from weitiao.data.chat.exchanges import exchanges, filler_exchanges, is_filler, steps
from weitiao.data.chat.windows import TooLong, Window, windows
from weitiao.data.row_maker import RowMaker
from weitiao.data.tokenization import ChatProcessor, num_tokens
from weitiao.data.window_rows import WindowRow, as_asked, window_rows
from weitiao.objective.objectives.sft import SFT

TOOLS = json.dumps(
    [{"type": "function", "function": {"name": "weather", "description": "-", "parameters": {"type": "object"}}}]
)
WORDS = ("fox", "dog", "box", "lazy", "quick", "seven", "paris", "你好", "世界", "42", "liquor", "time")


def words(turns: Any) -> int:
    """Tokens, as a plain template would count them."""
    return sum(2 + len(turn.text.split()) for turn in turns)


def dialogue(*texts: str, system: str = "") -> list[Turn]:
    """Turns of user and assistant in turn."""
    opening = [Turn("system", system)] if system else []
    return opening + [Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]


def call(city: str, id: str = "") -> Turn:
    return Turn("assistant", "", tool_calls=(ToolCall("weather", json.dumps({"city": city}), id),))


# -- exchanges --------------------------------------------------------------------------------------------------------


def test_exchanges_begin_at_user_turns_and_keep_calls_whole() -> None:
    turns = [
        Turn("system", "s"), Turn("assistant", "Hello, how can I help?"),
        Turn("user", "Hi"), Turn("user", "again"), Turn("assistant", "Yes?"),
        Turn("user", "weather"), call("Oslo", "a"), Turn("user", "hurry"), Turn("tool", "7 C", tool_call_id="a"),
        Turn("assistant", "7 C"),
        Turn("user", "thanks"), Turn("assistant", "Bye"),
    ]  # fmt: skip
    assert exchanges(turns) == [(1,), (2, 3, 4), (5, 6, 7, 8, 9), (10, 11)]
    assert steps(turns, (5, 6, 7, 8, 9)) == ((5,), [(6, 7, 8), (9,)])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("好的，谢谢！", True), ("嗯嗯嗯", True), ("OK, thanks a lot!", True), ("You're welcome", True),
        ("知道了 👍", True),
        ("好的，那帮我改到周三", False), ("thanks, and the invoice?", False), ("42", False), ("", False), ("是", False),
        ("不", False), ("yes", False), ("好的 " * 40, False),
    ],
)  # fmt: skip
def test_fillers(text: str, expected: bool) -> None:
    assert is_filler(text) is expected


def test_agreement_is_no_filler_exchange() -> None:
    turns = dialogue("Book a room", "Shall I take the one for 80 euros?", "OK", "Done.", "thanks", "Glad to help.",
                     "thanks", "Your number is 77.")  # fmt: skip
    assert filler_exchanges(turns, exchanges(turns)) == {2}


# -- what is dropped first --------------------------------------------------------------------------------------------


def test_fillers_first_then_the_oldest_then_what_shares_least() -> None:
    turns = dialogue(
        "my name is Katherine", "noted", "a story", "once upon", "ok thanks", "welcome", "the lazy dog", "barks",
        "seven boxes", "heavy", "a joke", "ha", "another one", "ho", "the third", "hi", "write to Katherine", "dear",
    )  # fmt: skip
    order = drop_order(turns, exchanges(turns), [8])
    assert order == [(2, "filler"), *((k, "oldest") for k in (1, 3, 4, 5, 6, 7)), (0, "overlap")]
    assert drop_order(dialogue("a b", "c", "d e", "f", "x y", "z"), [(0, 1), (2, 3), (4, 5)], [2]) == [
        (0, "oldest"),
        (1, "oldest"),
    ]


def test_answers_count_only_where_they_are_known() -> None:
    turns = dialogue("I am Katherine", "hello", "a story", "once", "a joke", "ha", "sign the letter", "regards, Katherine")
    units = exchanges(turns)
    assert drop_order(turns, units, [3])[0] == (0, "oldest")
    assert drop_order(turns, units, [3], answers=True)[-1] == (0, "overlap")


def test_last_exchange_always_kept() -> None:
    turns = dialogue("one two three", "four", "five six", "seven", "eight", system="be kind")
    kept = keep_last(turns, words, 14)
    assert kept is not None and kept.turns == (0, 3, 4, 5) and kept.size == words([turns[i] for i in kept.turns])
    assert sorted(kept.dropped) == [(1, "oldest"), (2, "oldest")]
    assert keep_last(turns, words, 6) is None and keep_last(turns, words, 99).dropped == ()  # pyright: ignore[reportOptionalMemberAccess]


def test_long_last_exchange_loses_its_oldest_steps() -> None:
    turns = [Turn("user", "go"), Turn("assistant", "old"), Turn("user", "all of it")]
    turns += [x for city in ("Oslo", "Bonn", "Rome") for x in (call(city), Turn("tool", "7 C"))]
    kept = keep_last(turns, words, 23)
    assert kept is not None and kept.turns == (2, 5, 6, 7, 8)
    assert dict(kept.dropped) == dict.fromkeys((0, 1, 3, 4), "oldest")


# -- rows for training ------------------------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    """Conversations with and without a system message, tools, fillers and turns that are not trained on."""

    def text(longest: int = 12) -> str:
        return " ".join(draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=longest)))

    turns = [Turn("system", text(4))] if draw(st.booleans()) else []
    turns += [Turn("assistant", "welcome")] if draw(st.integers(0, 4)) == 0 else []
    for _ in range(draw(st.integers(1, 12))):
        turns.append(Turn("user", draw(st.sampled_from(["ok thanks", "好的", text(), text(), text()]))))
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
            turns += [call(text(1)), Turn("tool", text(5))]
        turns.append(Turn("assistant", text(), supervised=draw(st.integers(0, 3)) > 0))
    turns.append(Turn("user", text()))
    return [*turns, Turn("assistant", text())]


@settings(max_examples=200, deadline=None)
@given(conversations(), st.integers(6, 120))
def test_each_answer_in_one_row_that_fits(turns: list[Turn], limit: int) -> None:
    pairs = [(i, i + 1) for i, turn in enumerate(turns) if turn.tool_calls]
    answers: list[int] = []
    for x in windows(turns, words, limit):
        answers += x.answers
        if isinstance(x, TooLong):
            assert x.size > limit
            continue
        row = x.turns(turns)
        assert words(row) == x.selection.size <= limit
        assert [i for i in x.selection.turns if turns[i].is_target and i in x.answers] == list(x.answers)
        assert [turn for turn in row if turn.is_target] == [turns[i] for i in x.answers]
        assert row[-1] is turns[x.answers[-1]] and all(a < b for a, b in pairwise(x.selection.turns))
        assert all((a in x.selection.turns) == (b in x.selection.turns) for a, b in pairs if b < x.answers[-1])
        begun = set(range(x.answers[-1] + 1))
        assert {i for i in begun if turns[i].role == "system"} <= set(x.selection.turns)
        assert set(x.selection.turns) | {i for i, _ in x.selection.dropped} == begun
    assert sorted(answers) == [i for i, turn in enumerate(turns) if turn.is_target]


def processor(name: str) -> ChatProcessor:
    if name == "chatml":
        return ChatProcessor.make(make_tokenizer())  # pyright: ignore[reportArgumentType]
    tokenizer = family_tokenizer(name)
    return ChatProcessor.make(tokenizer, family_stops(name, tokenizer))


def learned(rows: list[Any]) -> list[list[int]]:
    """The token ids that carry loss, a list for each stretch."""
    stretches: list[list[int]] = []
    for row in rows:
        labels = [IGNORE, *row["labels"]]
        for before, label in pairwise(labels):
            if label != IGNORE:
                stretches = [*stretches, [label]] if before == IGNORE else [*stretches[:-1], [*stretches[-1], label]]
    return stretches


def agent_chat(reasoning: str = "", tools: bool = True) -> Chat:
    turns = [Turn("system", "Be brief.")]
    for i, city in enumerate(("Oslo", "Bonn", "Rome", "Lima", "Paris", "Quito", "Seoul", "Cairo")):
        turns.append(Turn("user", f"How warm is it in {city}?"))
        turns += [call(city), Turn("tool", f"{i + 11} degrees")] if tools else []
        turns.append(Turn("assistant", f"It has {i + 11} degrees in {city}.", reasoning=reasoning))
    return Chat(tuple(turns), TOOLS if tools else "")


@pytest.mark.parametrize("name", ["qwen25", "qwen3"])
def test_answers_keep_their_tokens_in_every_template(name: str) -> None:
    made, chat = processor(name), agent_chat("It is a city, so look it up." if name == "qwen3" else "")
    whole = SFT().rows(chat, made)
    limit = max(len(row["input_ids"]) for row in whole) // 2
    item = SourcedExample(chat, SourceLocation("f", 1))
    rows = window_rows(item, chat, SFT(), made, limit)
    made_rows = [x.row for x in rows if isinstance(x, WindowRow)]
    assert len(made_rows) == len(rows) > 1 and all(len(x["input_ids"]) <= limit for x in made_rows)
    assert learned(made_rows) == learned(whole)
    assert sum(x.num_answers for x in rows if isinstance(x, WindowRow)) == 16


def test_agents_steps_in_a_template_that_refuses_two_questions() -> None:
    """Mistral's: one question, many steps; the row without it would begin with a second question."""
    made, turns = processor("mistral"), [Turn("user", "the fox")]
    for k in range(6):
        turns += [
            call("paris " * 5, f"abcdefgh{k}"),
            Turn("tool", "sunny " * 6, name="weather", tool_call_id=f"abcdefgh{k}"),
        ]
    item = SourcedExample(Chat((*turns, Turn("assistant", "done")), TOOLS), SourceLocation("f", 1))
    whole, _ = RowMaker(SFT(), made, 10**6, "error").rows([item])
    rows, facts = RowMaker(SFT(), made, int(0.7 * max(len(x["input_ids"]) for x in whole)), "drop_turns").rows([item])
    assert not facts.bad and len(learned(rows)) == len(learned(whole)) == 7


@pytest.mark.parametrize("name", ["chatml", "qwen25", "llama31"])
def test_answer_that_fits_exactly_is_kept(name: str) -> None:
    """A text's last tokens (the stop token, a line end) are no positions of its row."""
    made = processor(name)
    item = SourcedExample(Chat(tuple(dialogue("the fox " * 10, "dog " * 5))), SourceLocation("f", 1))
    (whole,), _ = RowMaker(SFT(), made, 10**6, "error").rows([item])
    for room in range(3):
        rows, facts = RowMaker(SFT(), made, len(whole["input_ids"]) + room, "drop_turns").rows([item])
        assert not facts.bad and [x["input_ids"] for x in rows] == [whole["input_ids"]]


def test_thoughts_that_only_one_row_has_count_there() -> None:
    """Qwen3's template leaves thoughts out of earlier turns: the first row is longer than the whole conversation."""
    made = processor("qwen3")
    turns = dialogue("the fox", "dog", "the box", "seven", "what time", "paris")
    turns[1] = replace(turns[1], reasoning="think " * 200)
    chat, limit = Chat(tuple(turns)), 200
    assert num_tokens(made, turns) < limit < max(len(x["input_ids"]) for x in SFT().rows(chat, made))
    rows, facts = RowMaker(SFT(), made, limit, "drop_turns").rows([SourcedExample(chat, SourceLocation("f", 1))])
    assert len(facts.bad) == 1 and "answers fit into no row" in facts.bad[0]["reason"]["template"]
    texts = ["".join(made.tokenizer.decode(x) for x in learned([row])) for row in rows]
    assert ["seven" in x for x in texts].count(True) == ["paris" in x for x in texts].count(True) == 1
    assert all(len(row["input_ids"]) <= limit for row in rows)


def test_answer_that_fits_nowhere_is_a_bad_row(train_tiny: Any, tmp_path: Path) -> None:
    short = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "paris"}]
    long = {"role": "assistant", "content": "fox " * 90}
    rows = [{"messages": [*short * 20, {"role": "user", "content": f"more {i}"}, long]} for i in range(2)]
    file = write_jsonl(tmp_path / "long.jsonl", rows)
    run = train_tiny(
        data=[{"path": str(file)}],
        validation=0.0,
        max_length=60,
        overlong="drop_turns",
        max_bad_fraction=1.0,
        train={"steps": 1},
    )
    bad = run.read("bad_rows.jsonl")
    assert len(bad) == 2 and bad[0]["reason"].startswith("1 answers fit into no row: with their question")
    assert run.read("resolved.json")["data"]["supervised_tokens"] > 0
    with pytest.raises(Exception, match="answers fit into no row"):
        train_tiny(data=[{"path": str(file)}], max_length=60, overlong="drop_turns", out=str(tmp_path / "strict"))


# -- training and use -------------------------------------------------------------------------------------------------


def test_training_and_use_keep_the_same_turns() -> None:
    made, chat = processor("chatml"), agent_chat(tools=False)
    turns = [Turn(x.role, x.content, supervised=i == len(chat.turns) - 1) for i, x in enumerate(chat.turns)]
    size = partial(num_tokens, made)
    for limit in range(size([*turns[:1], *turns[-2:]]) + 1, size(turns), 17):
        (row,) = windows(turns, size, limit, answers=False)
        used = keep_last(turns[:-1], lambda some: size([*some, turns[-1]]), limit)
        assert isinstance(row, Window) and used is not None
        assert row.selection.turns == (*used.turns, len(turns) - 1) and row.selection.dropped == used.dropped


def test_rows_to_measure_on_have_the_context_of_use() -> None:
    made = processor("chatml")
    facts = [
        f"the number of {word} is {i}{i}{i}" for i, word in enumerate(("fox", "dog", "box", "time", "liquor", "wizard"))
    ]
    turns = [x for fact in facts for x in dialogue(fact, "noted")] + dialogue("and what now", "ask 111 again")
    chat = Chat(tuple(turns))
    item, limit = SourcedExample(chat, SourceLocation("f", 1)), num_tokens(made, turns) // 2
    asked = as_asked(item, made, limit).example
    assert isinstance(asked, Chat) and asked.turns[-1] == turns[-1] and num_tokens(made, asked.turns) <= limit
    assert "dog is 111" not in asked.full_text  # only the answer points to it, and it is not known
    held_out, trained = (window_rows(item, chat, SFT(), made, limit, held_out=x)[-1] for x in (True, False))
    texts = [made.tokenizer.decode(x.row["input_ids"]) for x in (held_out, trained) if isinstance(x, WindowRow)]
    assert ["dog is 111" in text for text in texts] == [False, True]


@pytest.fixture
def long_chats(tmp_path: Path) -> Path:
    rows = []
    for i in range(12):
        texts = [x for k in range(10) for x in (f"the fox {k} and the lazy dog {i}", "seven boxes of liquor")]
        turns = dialogue(*texts, f"what time is it {i}", "paris")
        rows.append({"messages": [{"role": x.role, "content": x.content} for x in turns]})
    return write_jsonl(tmp_path / "long.jsonl", rows)


def test_run_records_what_was_dropped_and_uses_it(train_tiny: Any, long_chats: Path, tmp_path: Path) -> None:
    run = train_tiny(data=[{"path": str(long_chats)}], max_length=150, overlong="drop_turns", train={"steps": 1})
    records = run.read("dropped_turns.jsonl")
    assert {x["file"] for x in records} == {str(long_chats)} and {x["line"] for x in records} == set(range(1, 13))
    assert all(x["tokens"] <= 150 and x["dropped"] for x in records)
    first = records[0]["dropped"][0]
    assert first == {"turn": 0, "role": "user", "reason": "oldest", "text": first["text"]} and "the fox 0" in first["text"]
    answers = [i for x in records if x["line"] == 1 for i in x["answers"]]
    assert len(answers) == len(set(answers))
    resolved = run.read("resolved.json")
    assert resolved["data"]["trimmed"] > 0 and resolved["decisions"]
    code, told = weitiao("why", str(run.folder))
    assert code == 0 and "conversations are longer than 150 tokens: each of their answers is trained on once" in told

    code, told = weitiao("evaluate", str(run.folder), "--data", long_chats, "--json")
    assert code == 0 and json.loads(told)["loss"]["clusters"] == 12

    from weitiao import api
    from weitiao.pipeline.prompting import as_turns

    model = api.load(run)
    messages = json.loads(long_chats.read_text().splitlines()[0])["messages"][:-1]
    prompt = model.prompt(as_turns(messages), max_new_tokens=8)
    assert len(prompt) <= 142 and prompt.dropped and 0 in prompt.dropped and len(messages) - 1 not in prompt.dropped
    assert model.generate(messages, max_new_tokens=8) is not None
    model = api.load(run, overlong="error")
    assert not model.prompt(as_turns(messages)).dropped
    lines = write_jsonl(tmp_path / "prompts.jsonl", [{"messages": messages}, {"prompt": "hi"}])
    code, output = weitiao("generate", str(run.folder), "--prompts", lines, "--max-new-tokens", "8")
    answered = [json.loads(x) for x in output.splitlines() if x.startswith("{")]
    assert code == 0 and answered[0]["dropped_messages"] == list(prompt.dropped) and "dropped_messages" not in answered[1]
    code, output = weitiao("generate", str(run.folder), "hi", "--overlong", "compress")
    assert code and "there is no 'compress'" in output


def test_tasks_without_conversations_are_as_they_were(train_tiny: Any, long_chats: Path, tmp_path: Path) -> None:
    labelled = [
        {"text": f"the {x} fox {i} " * (40 if i == 3 else 1), "label": x} for i in range(12) for x in ("lazy", "quick")
    ]
    file = write_jsonl(tmp_path / "labelled.jsonl", labelled)
    run = train_tiny(
        data=[{"path": str(long_chats), "task": "chat"}, {"path": str(file), "task": "topic"}],
        objective={"name": "multi_task", "tasks": {"chat": {"name": "sft"}, "topic": {"name": "classification"}}},
        max_length=120,
        overlong="drop_turns",
        train={"steps": 1},
    )
    assert {x["file"] for x in run.read("dropped_turns.jsonl")} == {str(long_chats)}
    assert run.read("resolved.json")["data"]["truncated"] > 0  # as classification does with long texts

    from weitiao import api

    (predicted,) = api.load(run).predict(["the lazy fox"], task="topic")
    assert predicted["predicted"] in ("lazy", "quick")
