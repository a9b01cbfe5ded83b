"""Documents that are too long continue in the next row at a heading, a paragraph, a sentence, and lose nothing."""

from functools import cache
from typing import Any

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from support.models import make_tokenizer
from weitiao.core.batch import IGNORE
from weitiao.core.example import SourcedExample, SourceLocation, Text
from weitiao.data.document_pieces import CLAUSE, GRAPHEME, HEADING, INSIDE, PARAGRAPH, SENTENCE, piece_starts
from weitiao.data.row_maker import RowMaker
from weitiao.data.tokenization import ChatProcessor
from weitiao.objective.objectives.causal_lm import CausalLM

PIECES = (
    "the fox ", "Seven boxes. ", "你好，世界。", "# Title\n\n", "\n\n", "\n", "第三章 ", "e\u0301",
    "\U0001f469\u200d\U0001f467", "\U0001f1e8\U0001f1f3", "\U0001f44d\U0001f3fd", "\u1100\u1161\u11a8", "\u3000", "，",
    "! ", "...", "\r\n", "<|im_end|>", "龘", "a" * 30,
)  # fmt: skip


@cache
def processor() -> Any:
    return ChatProcessor.make(make_tokenizer())  # pyright: ignore[reportArgumentType]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join) | st.text(min_size=1), st.integers(1, 70))
def test_pieces_are_the_document(text: str, max_length: int) -> None:
    maker = RowMaker(CausalLM(), processor(), max_length, "split")
    item = SourcedExample(Text(text), SourceLocation("f", 1))
    try:
        (whole,) = CausalLM().rows(item.example, processor())
    except ValueError:  # a noncharacter
        return
    rows, facts = maker.rows([item])
    pieces = [list(row["input_ids"]) for row in rows]
    ids = [int(x) for x in whole["input_ids"]]
    if facts.split:  # the last piece may be the end-of-text token alone, on which nothing is trained
        assert sum(pieces, []) in (ids, ids[:-1])
        labels = [int(x) for row in rows for x in row["labels"] if x != IGNORE]
        assert labels == ids[1:]
    assert all(len(piece) <= max_length for piece in pieces)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES[:-1]), min_size=4, max_size=60).map("".join))
def test_no_grapheme_is_cut(text: str) -> None:
    ids, offsets = processor().encode_with_offsets(text)
    longest = 40  # tokens: more than those of any grapheme here
    starts = piece_starts(text, ids, processor(), longest)
    begin = {match.start() for match in regex.finditer(r"\X", text)}
    cuts = [offsets[t][0] for t, _ in starts]
    assert all(place != INSIDE for _, place in starts) and set(cuts) <= begin
    edges = [0, *cuts, len(text)]
    parts = [text[a:b] for a, b in zip(edges, edges[1:])]
    assert "".join(parts) == text
    decoded = [
        processor().decode(ids[a:b], skip_special_tokens=False)
        for a, b in zip([0, *(t for t, _ in starts)], [*(t for t, _ in starts), len(ids)])
    ]
    assert decoded == parts and not any("\ufffd" in x for x in decoded)


@pytest.mark.parametrize(
    "text, place, begins",
    [
        ("fox dog\n\n# One\n\nfox fox.\n\ndog dog\n\n## Two\n\nbox box. fox\n\nmore boxes here", HEADING, "## Two"),
        ("fox fox. " * 6 + "\n\ndog dog. box. " * 2 + "end end end", PARAGRAPH, "dog dog. box. end"),
        ("你好世界。" * 5 + "世界你好，你好世界" * 3, SENTENCE, "世界你好，你好世界世界"),
        ("世界你好" * 6 + "，" + "你好世界" * 6, CLAUSE, "你好世界你"),
        ("世界" * 40, GRAPHEME, "世界"),
    ],
)
def test_best_place_wins(text: str, place: int, begins: str) -> None:
    ids, offsets = processor().encode_with_offsets(text)
    best, kind = piece_starts(text, ids, processor(), int(len(ids) * 0.8))[0]
    assert kind == place and text[offsets[best][0] :].startswith(begins)


def test_notes_say_where_pieces_begin() -> None:
    maker = RowMaker(CausalLM(), processor(), 40, "split")
    text = "# fox\n\nthe lazy dog. seven boxes.\n\n# box\n\nthe quick fox. what time is it.\n\n" * 4
    _, facts = maker.rows([SourcedExample(Text(text), SourceLocation("f", 1))])
    assert facts.notes["pieces of documents that begin at a heading"] >= 3
