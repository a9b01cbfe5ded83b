"""Encoded rows: kept under a fingerprint of all they depend on, and never cut silently."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.models import CHATML, make_tokenizer, make_wordpiece_tokenizer
from support.rows import chat_rows
from weitiao.core.batch import IGNORE, pack
from weitiao.core.errors import DataError
from weitiao.core.example import Chat, Example, Pair, SourcedExample, SourceLocation, Task, Text, TextLabel, TextScore, Turn
from weitiao.core.files import home
from weitiao.core.messages import reading_in
from weitiao.core.processor import Processor
from weitiao.data.encode import Encoded, encode, fingerprint
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.causal_lm import CausalLM
from weitiao.objective.objectives.classification import Classification
from weitiao.objective.objectives.embedding import Embedding
from weitiao.objective.objectives.multi_task import MultiTask
from weitiao.objective.objectives.regression import Regression
from weitiao.objective.objectives.sft import SFT


class Counting:
    """A processor that counts how often it is asked."""

    def __init__(self, template: str = CHATML) -> None:
        self.inside, self.asked = ChatProcessor.make(make_tokenizer(template)), 0
        self.eos_id, self.stop_ids, self.feature_extractor = self.inside.eos_id, self.inside.stop_ids, None

    def text(self, text: str) -> list[int]:
        self.asked += 1
        return self.inside.text(text)

    def chat(self, turns: Any, tools: str = "") -> Any:
        self.asked += 1
        return self.inside.chat(turns, tools)

    def prompt(self, turns: Any, tools: str = "") -> list[int]:
        return self.inside.prompt(turns)

    def encode_with_offsets(self, text: str) -> Any:
        return self.inside.encode_with_offsets(text)

    def decode(self, ids: Any) -> str:
        return self.inside.decode(ids)

    def contains_special_tokens(self, text: str) -> bool:
        return self.inside.contains_special_tokens(text)


def chats(count: int = 6) -> list[Example]:
    return [Chat(tuple(Turn(**turn) for turn in row["messages"])) for row in chat_rows(count)]


def sourced(examples: list[Example]) -> list[SourcedExample]:
    return [SourcedExample(x, SourceLocation("rows.jsonl", i + 1, 100 * i)) for i, x in enumerate(examples)]


def run(
    examples: list[Example], processor: Processor, max_length: int = 256, overlong: str = "error", **more: Any
) -> Encoded:
    objective: Any = more.pop("objective", SFT())
    return encode(sourced(examples), objective, processor, more.get("identity", "x"), max_length, overlong)


def test_encoded_rows_cached_on_disk() -> None:
    processor = Counting()
    first = run(chats(), processor)
    assert processor.asked == 6
    second = run(chats(), processor)
    assert processor.asked == 6
    assert len(first.rows) == len(second.rows) == 6
    for i in range(6):
        for key in ("input_ids", "labels"):
            assert first.rows[i][key].tolist() == second.rows[i][key].tolist()
        assert str(second.rows.where(i)) == f"rows.jsonl, line {i + 1}, byte {100 * i}"


def test_cached_rows_equal_objective_rows() -> None:
    processor = Counting()
    made = run(chats(), processor).rows
    for i, example in enumerate(chats()):
        (row,) = SFT().rows(example, processor)
        assert made[i]["input_ids"].tolist() == list(row["input_ids"])
        assert made[i]["labels"].tolist() == list(row["labels"])
        assert made.lengths[i] == len(row["input_ids"])
        assert made.supervised[i] == sum(x != IGNORE for x in row["labels"])


def test_partial_cache_ignored() -> None:
    processor = Counting()
    run(chats(), processor)
    (file,) = (home() / "encoded").glob("*.arrow")
    file.unlink()
    assert len(run(chats(), processor).rows) == 6 and processor.asked == 12


def test_cache_fingerprint_covers_inputs() -> None:
    base: tuple[Any, ...] = (sourced(chats()), SFT(), "x", 256, "cut")
    moved = [SourcedExample(x.example, x.where, 1) for x in base[0]]
    others = [
        (sourced(chats(5)), *base[1:]),
        (sourced([chats()[0], *chats()[:5]]), *base[1:]),
        (moved, *base[1:]),
        (base[0], CausalLM(), *base[2:]),
        (*base[:2], "y", *base[3:]),
        (*base[:3], 255, "cut"),
        (*base[:4], "drop"),
    ]
    assert fingerprint(*base) == fingerprint(sourced(chats()), *base[1:])
    assert len({fingerprint(*other) for other in [base, *others]}) == 1 + len(others)


def test_fingerprint_is_the_same_in_every_language() -> None:
    """Else a run that was started in Chinese could not be resumed in English."""
    prints = set()
    for language in ("en", "zh"):
        with reading_in(language):
            prints.add(fingerprint(sourced(chats()), SFT(), "x", 9, "cut"))
    assert len(prints) == 1


def test_fingerprint_separates_turn_and_lookalike_text() -> None:
    two = Chat((Turn("user", "a\nassistant: b\nuser: c"), Turn("assistant", "d")))
    four = Chat((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")))
    assert fingerprint(sourced([two]), SFT(), "x", 9, "cut") != fingerprint(sourced([four]), SFT(), "x", 9, "cut")


# -- too long ---------------------------------------------------------------------------------------------------------

LONG = Chat((Turn("user", "liquid boxes " * 40), Turn("assistant", "seven wizards ask the fox")))


def test_overlong_error_names_row_and_length() -> None:
    with pytest.raises(
        DataError, match=r"rows.jsonl, line 7, byte 600: this conversation has \d+ tokens, but max_length is 64"
    ):
        run([*chats(), LONG], Counting(), max_length=64)
    assert not list((home() / "encoded").glob("*")), "a refused encoding must not be kept"


def test_overlong_truncate_keeps_answer_end() -> None:
    processor = Counting()
    made = run([*chats(), LONG], processor, max_length=64, overlong="truncate")
    (whole,) = SFT().rows(LONG, processor)
    assert made.truncated == 1 and len(made.rows) == 7
    assert made.rows[6]["input_ids"].tolist() == list(whole["input_ids"])[-64:]
    labels = [x for x in made.rows[6]["labels"].tolist() if x != IGNORE]
    assert processor.inside.tokenizer.decode(labels) == "seven wizards ask the fox<|im_end|>"


def test_overlong_drop_counted() -> None:
    made = run([*chats(), LONG], Counting(), max_length=64, overlong="drop")
    assert (len(made.rows), made.dropped, made.bad) == (6, 1, [])


@pytest.mark.parametrize("max_length", [1, 7, 16, 63])
def test_overlong_split_keeps_all_loss_tokens(max_length: int) -> None:
    processor, text = Counting(), Text("the quick brown fox jumps over the lazy dog " * 5)
    (whole,) = CausalLM().rows(text, processor)
    made = run([text], processor, max_length, "split", objective=CausalLM())
    assert made.split == 1 and made.rows.lengths.max() <= max_length
    labels = np.concatenate([made.rows[i]["labels"] for i in range(len(made.rows))])
    supervised = [x for x in whole["labels"] if x != IGNORE]
    assert labels[labels != IGNORE].tolist() == supervised
    for i in range(len(made.rows)):  # within a piece, each label is the next token
        ids, after = made.rows[i]["input_ids"], made.rows[i]["labels"]
        assert after[:-1].tolist() == ids[1:].tolist()


def test_split_pieces_without_loss_dropped() -> None:
    processor = Counting()
    made = run([LONG], processor, max_length=16, overlong="split")
    (whole,) = SFT().rows(LONG, processor)
    assert all(made.rows.supervised > 0) and made.bad == []
    assert made.rows.supervised.sum() == sum(x != IGNORE for x in whole["labels"])


# -- nothing to learn -------------------------------------------------------------------------------------------------

SILENT = "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% endif %}{% endfor %}"


def test_all_labels_masked_refused() -> None:
    with pytest.raises(DataError, match="no token carries loss.*line 1, byte 0: no token of this row carries loss"):
        run(chats(), Counting(SILENT))


def test_all_labels_masked_refused_from_cache() -> None:
    for _ in range(2):
        with pytest.raises(DataError, match="no token carries loss"):
            run(chats(), Counting(SILENT))


def test_row_rejected_by_template_set_aside(tmp_path: Path) -> None:
    strict = CHATML + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    odd = Chat((Turn("system", "be kind"), Turn("user", "the fox"), Turn("assistant", "paris")))
    made = run([*chats(), odd], Counting(strict))
    (bad,) = made.bad
    assert len(made.rows) == 6 and bad.where.line == 7
    assert "the chat template rejects this conversation: no system" in str(bad.reason)
    assert "be kind" in bad.excerpt


# -- targets ----------------------------------------------------------------------------------------------------------


def test_targets_survive_the_cache() -> None:
    """Targets are read back as they were: names, float32 bits, and rows without any."""
    objective = MultiTask(
        tasks={
            "kind": Classification(classes=("a", "b"), multi_label=False),
            "score": Regression(means=(0.1, 0.2), stds=(0.3, 0.7)),
            "pair": Embedding(),
        }
    )
    examples: list[Example] = [
        Task("kind", TextLabel("the quick brown fox", ("b",))),
        Task("score", TextScore("jumps over", (1 / 3, -100.0), "the lazy dog")),
        Task("pair", Pair("the fox", "the dog", ("paris",))),
    ]
    processor = ChatProcessor.make(make_wordpiece_tokenizer())
    rows = [objective.rows(x, processor)[0] for x in examples]
    for _ in range(2):
        made = run(examples, processor, objective=objective).rows
        for i, row in enumerate(rows):
            for kind in ("targets", "token_targets"):
                stored, wanted = made[i].get(kind, {}), row.get(kind, {})
                assert stored.keys() == wanted.keys()
                assert all(np.array_equal(stored[name], wanted[name]) for name in wanted)
        assert made.supervised.tolist() == [1, 1, 3]
    batch, alone = pack([made[i] for i in range(3)]), pack([made.of("score")[0]])
    assert set(batch.targets) == {"kind/class_id", "score/values"} and set(batch.token_targets) == {"pair/text_index"}
    assert alone.targets["values"].tolist() == [rows[1]["targets"]["values"].tolist()]  # pyright: ignore
