"""Text that the vocabulary lacks is reported before training: in targets, in texts, and where rows become alike."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from support.models import make_tokenizer, make_wordpiece_tokenizer, save_model
from support.rows import write_jsonl
from weitiao.core.errors import CheckError
from weitiao.core.example import Chat, SourcedExample, SourceLocation, SourceTarget, TextLabel, Turn
from weitiao.core.finding import Finding
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import find
from weitiao.core.reporter import Reporter
from weitiao.data.encode import encode
from weitiao.data.tokenization import ChatProcessor
from weitiao.data.vocabulary import check_vocabulary
from weitiao.pipeline.train import check


def character_tokenizer(characters: str) -> Any:
    """A tokenizer of single characters, as a small T5's: others are <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {x: i for i, x in enumerate(["<pad>", "</s>", "<unk>", *sorted(set(characters))])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    raw.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def findings_of(examples: list, objective: Any, tokenizer: Any, **settings: Any) -> dict[str, Finding]:
    sourced = [SourcedExample(x, SourceLocation("rows.jsonl", i)) for i, x in enumerate(examples, 1)]
    fitted = find("objective", objective)(**settings).fit(examples)
    rows = encode(sourced, fitted, ChatProcessor.make(tokenizer), repr(tokenizer), 256, "error").rows
    return {x.name: x for x in check_vocabulary(rows, sourced, fitted, tokenizer)}


DATES = "the 3rd of May 2024-"


def test_targets_that_can_never_be_written_are_an_error() -> None:
    examples = [SourceTarget("the 3rd of May", '{"date": "2024-05-03"}')] * 5
    finding = findings_of(examples, "seq2seq", character_tokenizer(DATES + "05"))["unknown_targets"]
    assert finding.level == "error" and "5 of 5 rows" in str(finding.message)
    assert all(x in str(finding.message) for x in ('"', "{", "}", ":"))


def test_a_few_unknown_characters_in_targets_are_a_warning() -> None:
    good, bad = SourceTarget("the 3rd of May", "2024-03-04" * 9), SourceTarget("the 3rd", "2024-03-04€")
    found = findings_of([good] * 50 + [bad], "seq2seq", character_tokenizer(DATES))
    assert found["unknown_targets"].level == "warning" and "€" in str(found["unknown_targets"].message)
    assert "unknown_targets" not in findings_of([good] * 5, "seq2seq", character_tokenizer(DATES))


def test_one_gap_in_each_long_target_is_an_error() -> None:
    found = findings_of([SourceTarget("the", "2024-03-04" * 20 + "!")] * 9, "seq2seq", character_tokenizer(DATES))
    assert found["unknown_targets"].level == "error"


def test_unknown_texts_are_a_warning_and_rows_alike_are_named() -> None:
    examples = [TextLabel("😀😀", ("good",)), TextLabel("😡", ("bad",))] * 4
    found = findings_of(examples, "classification", make_wordpiece_tokenizer())
    assert found["unknown_tokens"].level == "warning" and "100% of the tokens" in str(found["unknown_tokens"].message)
    assert "😀" in str(found["unknown_tokens"].message)
    assert str(found["same_tokens"].message).startswith(
        "8 rows with different texts and different answers are the same tokens to the base, for example '😀😀' (good) and "
        "'😡' (bad)"
    )


def test_plain_texts_and_byte_tokenizers_are_quiet() -> None:
    words = [TextLabel("the quick brown fox 😀", ("good",)), TextLabel("jumps over the lazy dog", ("bad",))] * 4
    quiet = findings_of(words, "classification", make_wordpiece_tokenizer())
    assert {x.level for x in quiet.values()} <= {"fine"}
    emoji = [Chat((Turn("user", "smile"), Turn("assistant", '😀 {}\n"好"')))] * 4
    assert findings_of(emoji, "sft", make_tokenizer()) == {}
    alike = [TextLabel("😀😀", ("good",)), TextLabel("😡", ("bad",))] * 4
    assert findings_of(alike, "classification", make_tokenizer()) == {}
    same_text = [TextLabel("the fox", ("good",)), TextLabel("The  Fox", ("bad",))] * 4
    assert "same_tokens" not in findings_of(same_text, "classification", make_wordpiece_tokenizer())


def test_generative_classification_compares_questions_only() -> None:
    examples = [TextLabel("the fox", ("good",)), TextLabel("the dog", ("bad",))] * 4
    assert findings_of(examples, "generative_classification", make_tokenizer()) == {}


def test_dropped_characters_and_line_breaks() -> None:
    """A tokenizer without an unknown token drops what it does not know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE({x: i for i, x in enumerate(["</s>", *"abc▁"])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    found = findings_of([SourceTarget("a b", "c{a}")] * 3, "seq2seq", tokenizer)
    assert found["unknown_targets"].level == "error" and "drops { } from the targets of 3 of 3" in str(
        found["unknown_targets"].message
    )
    found = findings_of([SourceTarget("a b", "c\na")] * 3, "seq2seq", tokenizer)
    assert found["line_breaks"].level == "warning" and "unknown_targets" not in found


@pytest.mark.parametrize("allowed", [(), ("unknown_targets",)])
def test_check_refuses_unless_allowed(tmp_path: Path, allowed: tuple) -> None:
    folder = save_model(tmp_path / "t5", "t5")
    character_tokenizer(DATES).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"source": f"the {i}rd", "target": "{2024}"} for i in (0, 2, 3, 4)] * 3)
    recipe = make_recipe({"base": str(folder), "data": str(rows), "objective": "seq2seq", "validation": 0, "method": "full",
                          "train": {"steps": 2, "precision": "fp32"}, "out": str(tmp_path / "run")})  # fmt: skip
    reporter = Reporter(Console(quiet=True))
    if allowed:
        assert any(x.name == "unknown_targets" for x in check(recipe, reporter, allowed))
        return
    with pytest.raises(CheckError, match="it can never write: { }"):
        check(recipe, reporter, allowed)
