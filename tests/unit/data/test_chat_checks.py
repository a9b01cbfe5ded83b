"""Findings about conversations: what a template leaves out, and turns that do not alternate."""

import pytest

from support.agent_templates import family_tokenizer
from support.chat_templates import QWEN3, TEMPLATES
from support.models import CHATML, make_tokenizer
from weitiao.core.example import Chat, Turn
from weitiao.core.finding import Finding
from weitiao.data.chat_checks import check_chats
from weitiao.data.tokenization import ChatProcessor

DROPPING = (  # branches for the user and the assistant only
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UPPER = CHATML.replace("m['content']", "m['content'] | upper | trim")


def chats(*roles: str, count: int = 10) -> list[Chat]:
    """Conversations of these roles: s u a t."""
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Chat(tuple(Turn(names[x], f"{x}{i} says {k}") for k, x in enumerate(y))) for y in roles for i in range(count)]  # pyright: ignore[reportArgumentType]


def findings(template: str, rows: list[Chat]) -> dict[str, Finding]:
    return {x.name: x for x in check_chats(rows, ChatProcessor.make(make_tokenizer(template)))}


def test_dropped_turns_are_counted_by_role() -> None:
    found = findings(DROPPING, [*chats("suatua"), *chats("ua")])["chat_content"]
    assert found.level == "warning"
    assert str(found.message) == (
        "the content of 20 of 80 turns (system, tool) is not in the rendered rows: the chat template leaves it out"
    )


@pytest.mark.parametrize("template", [*TEMPLATES.values(), UPPER])
def test_rendered_turns_are_fine(template: str) -> None:
    """Also where it trims or changes letter case, and where thoughts of earlier turns are taken out."""
    thinking = Chat((*chats("ua")[0].turns, Turn("user", "and"), Turn("assistant", "<think>x</think>\n\nyes  <|im_end|> ")))
    found = findings(template, [*chats("uaua"), thinking])["chat_content"]
    assert found.level == "fine" and "all 44 turns" in str(found.message)


def test_content_written_as_json_is_there() -> None:
    """Llama's template writes a tool's result as a JSON string."""
    rows = [Chat((Turn("user", "hi"), Turn("assistant", "one"), Turn("tool", 'a "b"\né'), Turn("assistant", "two")))]
    made = ChatProcessor.make(family_tokenizer("llama31"))
    assert {x.name: x.level for x in check_chats(rows, made)}["chat_content"] == "fine"


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ("aua", "10 begin with the assistant"),
        ("uua", "10 have two turns of the user in a row"),
        ("uau", "10 go on after the last answer that is trained on: that end is cut off"),
        ("sa", "10 have no turn of the user"),
        ("uaa", "10 have two turns of the assistant in a row"),
    ],
)
def test_turns_that_do_not_alternate_are_counted(roles: str, problem: str) -> None:
    found = findings(CHATML, [*chats("ua", "sua", "uata"), *chats(roles)])["turn_order"]
    assert found.level == "warning" and str(found.message) == f"of 40 conversations, {problem}"


def test_exchanged_roles_are_suspected() -> None:
    message = str(findings(CHATML, chats("auau"))["turn_order"].message)
    assert message.endswith("user and assistant look exchanged: which of them should be trained on?")
    assert findings(CHATML, chats("ua", "suaua", "uatatua"))["turn_order"].level == "fine"


@pytest.mark.parametrize("template", [CHATML, QWEN3, TEMPLATES["llama3"]])
@pytest.mark.parametrize("roles", ["aua", "uua", "uau", "sa", "uaa", "auaua", "sauua"])
def test_learned_text_is_all_turns_of_the_assistant(template: str, roles: str) -> None:
    made = ChatProcessor.make(make_tokenizer(template))
    (chat,) = chats(roles, count=1)
    learned = [x for row in made.chat(chat.turns) for x, is_learned in zip(row.ids, row.assistant_mask) if is_learned]
    expected = "".join(f"{turn.content}<|im_end|>" for turn in chat.turns if turn.role == "assistant")
    assert made.tokenizer.decode(learned) == expected


def test_greeting_after_a_default_system_message() -> None:
    """The template writes a system message of its own before the first turn, but not before none."""
    template = (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nbe kind<|im_end|>\n"
        "{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    made = ChatProcessor.make(make_tokenizer(template))
    (row,) = made.chat(chats("aua", count=1)[0].turns)
    learned = [x for x, is_learned in zip(row.ids, row.assistant_mask) if is_learned]
    assert made.tokenizer.decode(learned) == "a0 says 0<|im_end|>a0 says 2<|im_end|>"


def test_template_that_refuses_gives_a_reason() -> None:
    made = ChatProcessor.make(make_tokenizer(TEMPLATES["mistral"]))
    for roles in ("aua", "uua", "sa"):
        with pytest.raises(ValueError, match="the chat template rejects this conversation: Conversation roles must"):
            made.chat(chats(roles, count=1)[0].turns)
