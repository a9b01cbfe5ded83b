"""The mask: the assistant's words and their stop token, and nothing else."""

import pytest

from support.chat_templates import BARE, LLAMA3, MISTRAL, QWEN3, STRADDLING, TEMPLATES
from support.models import CHATML, make_tokenizer
from weitiao.core.batch import IGNORE
from weitiao.core.errors import DataError
from weitiao.core.example import Chat, Turn
from weitiao.core.processor import Rendered
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.causal_lm import CausalLM, Text
from weitiao.objective.objectives.sft import SFT

ASK, ANSWER = Turn("user", "what time is it in paris"), Turn("assistant", "the quick fox asks")
AGAIN, LAST = Turn("user", "and the wizards?"), Turn("assistant", "你好 世界")


def processor(template: str | None = CHATML) -> ChatProcessor:
    return ChatProcessor.make(make_tokenizer(template))


def supervised_text(made: ChatProcessor, row: Rendered) -> list[str]:
    """Each stretch of tokens that carry loss, as text."""
    stretches: list[list[int]] = []
    before = False
    for token, said in zip(row.ids, row.assistant_mask):
        if said:
            stretches = [*stretches, [token]] if not before else [*stretches[:-1], [*stretches[-1], token]]
        before = said
    return [made.tokenizer.decode(x) for x in stretches]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (CHATML, "the quick fox asks<|im_end|>"),
        (LLAMA3, "the quick fox asks<|im_end|>"),
        (QWEN3, "the quick fox asks<|im_end|>"),
        (MISTRAL, " the quick fox asks<|im_end|>"),
        (BARE, "the quick fox asks<|im_end|>"),
    ],
    ids=["chatml", "llama3", "qwen3", "mistral", "bare"],
)
def test_only_answer_and_stop_carry_loss(template: str, says: str) -> None:
    made = processor(template)
    (row,) = made.chat([ASK, ANSWER])
    assert supervised_text(made, row) == [says]


def test_every_assistant_turn_carries_loss() -> None:
    made = processor()
    (row,) = made.chat([Turn("system", "be kind"), ASK, ANSWER, AGAIN, LAST])
    assert supervised_text(made, row) == ["the quick fox asks<|im_end|>", "你好 世界<|im_end|>"]


def test_stop_carries_loss_once() -> None:
    made = processor()
    (row,) = made.chat([Turn("user", "paris"), Turn("assistant", "paris")])
    assert supervised_text(made, row) == ["paris<|im_end|>"]


def test_template_stripping_thoughts_gives_row_per_turn() -> None:
    made = processor(QWEN3)
    thought = Turn("assistant", "<think>\nboxes\n</think>\n\nseven")
    rows = made.chat([ASK, thought, AGAIN, LAST])
    assert [supervised_text(made, row) for row in rows] == [
        ["<think>\nboxes\n</think>\n\nseven<|im_end|>"],
        ["你好 世界<|im_end|>"],
    ]
    assert "<think>" not in made.tokenizer.decode(rows[1].ids)  # as the model will see it


def test_template_stripping_nothing_keeps_one_row() -> None:
    assert len(processor(QWEN3).chat([ASK, ANSWER, AGAIN, LAST])) == 1


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_prompt_equals_generation_prompt(name: str) -> None:
    made = processor(TEMPLATES[name])
    (row,) = made.chat([ASK, ANSWER])
    prompt, begin = made.prompt([ASK]), row.assistant_mask.index(True)
    assert row.ids[:begin] == prompt
    said = [token for token, is_said in zip(row.ids, row.assistant_mask) if is_said]
    assert said == row.ids[begin : begin + len(said)] and said[-1] in made.stop_ids


def test_straddling_token_encoded_as_in_generation() -> None:
    made = processor(STRADDLING)
    turns = [Turn("user", "t"), Turn("assistant", "he fox")]
    whole = made.tokenizer("the fox<|im_end|>", add_special_tokens=False).input_ids
    (row,) = made.chat(turns)
    assert row.ids != whole, "the test's words do not straddle"
    assert row.ids[: row.assistant_mask.index(True)] == made.prompt(turns[:1])
    assert supervised_text(made, row) == ["he fox<|im_end|>"]
    assert made.tokenizer.decode(row.ids) == "the fox<|im_end|>"


def test_straddling_turns_keep_masks() -> None:
    made = processor(STRADDLING)
    turns = [Turn("user", "t"), Turn("assistant", "he fox"), Turn("user", "mi"), Turn("assistant", "x it")]
    (row,) = made.chat(turns)
    assert supervised_text(made, row) == ["he fox<|im_end|>", "x it<|im_end|>"]


@pytest.mark.parametrize("name", ["llama3", "mistral"])
def test_bos_appears_once(name: str) -> None:
    made = processor(TEMPLATES[name])
    bos = made.tokenizer.bos_token_id
    (row,) = made.chat([ASK, ANSWER, AGAIN, LAST])
    assert row.ids.count(bos) == 1 and row.ids[0] == bos
    assert made.prompt([ASK]).count(bos) == 1


def test_template_without_stop_uses_eos() -> None:
    made = processor(BARE)
    (row,) = made.chat([ASK, ANSWER])
    assert row.ids[-1] == made.eos_id and row.assistant_mask[-1]
    assert made.stop_ids == (made.eos_id,)


def test_template_stop_first() -> None:
    tokenizer = make_tokenizer(CHATML)
    tokenizer.eos_token = "<|endoftext|>"  # as base models that were given a chat template often say
    made = ChatProcessor.make(tokenizer, generation_stops=[0, 2])
    assert made.stop_ids == (2, 0)


def test_template_exception_is_row_error() -> None:
    with pytest.raises(ValueError, match="the chat template rejects this conversation: Conversation roles must alternate"):
        processor(MISTRAL).chat([Turn("system", "be kind"), ASK, ANSWER])


def test_missing_template_error_suggests_fix() -> None:
    with pytest.raises(DataError, match="chat_template: chatml.*objective: causal_lm"):
        processor(None).chat([ASK, ANSWER])


def test_tokenizer_without_eos_refused() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="has no end-of-text token"):
        ChatProcessor.make(tokenizer)


# -- the rows that objectives make of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_sft_labels_are_next_tokens(name: str) -> None:
    made = processor(TEMPLATES[name])
    turns = (ASK, ANSWER, AGAIN, LAST)
    (row,), (rendered,) = SFT().rows(Chat(turns), made), made.chat(turns)
    assert len(row["input_ids"]) == len(row["labels"])
    whole = [*row["input_ids"], row["labels"][-1]]
    assert whole == rendered.ids[: len(whole)]  # nothing after the last token that carries loss
    wanted = [token if said else IGNORE for token, said in zip(rendered.ids, rendered.assistant_mask)]
    assert row["labels"] == wanted[1 : len(whole)]
    assert not any(rendered.assistant_mask[len(whole) :])


def test_plain_text_all_tokens_carry_loss() -> None:
    made = processor()
    (row,) = CausalLM().rows(Text("the quick brown fox"), made)
    assert row["labels"] == [*row["input_ids"][1:], IGNORE]
    assert row["input_ids"][-1] == made.eos_id
    assert made.decode(row["input_ids"]) == "the quick brown fox"
