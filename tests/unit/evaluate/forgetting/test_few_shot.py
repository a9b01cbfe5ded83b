"""Examples for the base's prompt."""

from weitiao.core.eval_set import EvalSet
from weitiao.core.example import Chat, Turn
from weitiao.evaluate.forgetting.few_shot import NUMBERS, draw_examples, main_metric, with_examples


def chat(question: str, answer: str, system: str = "Sort.") -> Chat:
    return Chat((Turn("system", system), Turn("user", question), Turn("assistant", answer)))


def held_out(chats: list[Chat]) -> EvalSet:
    return EvalSet(chats, lambda: (), lambda i: chats[i])


ROWS = [chat(f"q{i}", ["a", "b", "c"][min(2, i % 7)]) for i in range(60)]


def test_examples_cover_the_answers_and_choose_on_other_rows() -> None:
    drawn = draw_examples(ROWS, held_out(ROWS[:30]), seed=1)
    assert drawn is not None
    assert {x.answer for x in drawn.examples[: NUMBERS[0]]} == {"a", "b", "c"}
    assert not {x.input_text for x in drawn.examples} & {x.input_text for x in drawn.tuning}
    assert drawn == draw_examples(ROWS, held_out(ROWS[:30]), seed=1)


def test_rows_with_another_system_message_are_no_examples() -> None:
    others = [chat(f"o{i}", "a", "Chat.") for i in range(100)]
    drawn = draw_examples([*others, *ROWS], held_out(ROWS[:30]), seed=1)
    assert drawn is not None
    assert {x.system for x in (*drawn.examples, *drawn.tuning)} == {"Sort."}
    assert draw_examples(others, held_out(ROWS[:30]), seed=1) is None


def test_examples_stand_between_system_message_and_question_without_loss() -> None:
    shown = with_examples(ROWS[0], ROWS[1:3])
    assert [x.content for x in shown.prompt] == ["Sort.", "q1", ROWS[1].answer, "q2", ROWS[2].answer, "q0"]
    assert (shown.answer, shown.system) == (ROWS[0].answer, "Sort.")
    assert [x.is_target for x in shown.turns].count(True) == 1


def test_the_first_metric_of_answers_is_compared() -> None:
    assert main_metric(("loss", "accuracy", "exact_match"), held_out(ROWS[:30])) == "accuracy"
    free = held_out([chat(f"q{i}", f"answer {i}") for i in range(30)])
    assert main_metric(("loss", "accuracy", "exact_match"), free) == "exact_match"
    assert main_metric(("loss", "code_pass", "code_compiles"), free) == "code_pass"
    assert main_metric(("loss", "perplexity"), free) is None
