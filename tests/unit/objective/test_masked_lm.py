"""Masked language modeling: masking, the head against transformers' logits, whole runs."""

import importlib.util
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForMaskedLM

from support.laws import attached
from support.models import ENCODERS, make_wordpiece_tokenizer, save_model
from support.rows import batch_of, write_jsonl
from weitiao.core.batch import IGNORE, pack
from weitiao.core.errors import ModelError, RecipeError
from weitiao.core.example import Text
from weitiao.core.objective import MASKED
from weitiao.core.processor import SpecialTokens
from weitiao.core.reporter import Reporter
from weitiao.data.tokenization import ChatProcessor
from weitiao.model.backbone.mlm_head import masked_head
from weitiao.objective.objectives.masked_lm import MaskedLM
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.predict import predict_file

WORDS = "the quick brown fox jumps over the lazy dog and asks what time it is in paris while seven wizards mix boxes "
PROCESSOR = ChatProcessor.make(make_wordpiece_tokenizer())
DESK = Reporter(Console(quiet=True))


def row_of(text: str, **settings: Any) -> Any:
    return MaskedLM(**settings).rows(Text(text), PROCESSOR)[0]


def ready(rows: list, family: str = "bert") -> tuple[Any, Any]:
    """(a tiny model with the head and a processor that knows [MASK], the rows as one batch)."""
    model = attached("full", family)
    torch.manual_seed(0)
    model.heads = torch.nn.ModuleDict({MASKED: masked_head(model.model)[0]})
    model.processor = PROCESSOR
    return model, batch_of(rows)


# -- what is hidden ---------------------------------------------------------------------------------------------------


def test_mask_fraction_without_special_tokens() -> None:
    rows = [row_of(WORDS * n) for n in (1, 2, 3, 4)]
    model, batch = ready(rows)
    shown = MaskedLM().mask(model, batch)
    hidden = shown.labels != IGNORE
    assert torch.equal(shown.labels[hidden], batch.input_ids[hidden]), "what is to be recovered is the token itself"
    for a, b in zip(batch.bounds, batch.bounds[1:]):
        assert not hidden[a] and not hidden[b - 1] and 0.1 <= hidden[a:b].float().mean() <= 0.16
    assert torch.equal(shown.input_ids[~hidden], batch.input_ids[~hidden])
    assert MaskedLM().counts(batch) == {"masked_lm": float(hidden.sum())}


def test_masked_80_10_10() -> None:
    model, batch = ready([row_of(WORDS * 5)])
    kinds: Counter[str] = Counter()
    for step in range(300):
        now = replace(batch, rng_key=(1, step))
        shown = MaskedLM().mask(model, now)
        at = shown.labels != IGNORE
        ids, true = shown.input_ids[at], batch.input_ids[at]
        kinds["mask"] += int((ids == PROCESSOR.mask_id).sum())
        kinds["same"] += int((ids == true).sum())
        kinds["all"] += int(at.sum())
    # of about 4,500: three standard deviations are 0.018 and 0.014
    assert abs(kinds["mask"] / kinds["all"] - 0.8) < 0.02
    assert abs(kinds["same"] / kinds["all"] - 0.1) < 0.015


def test_whole_word_masking() -> None:
    row = row_of("wizardsquietly unboxing foxes jumping lazily " * 4)
    model, batch = ready([row])
    word_ids = row["token_targets"]["word_id"]
    assert len(set(word_ids[1:-1])) < len(row["input_ids"]) - 2, "some words have several tokens"
    assert row["labels"] == [IGNORE, *row["input_ids"][1:-1], IGNORE]
    for step in range(20):
        hidden = MaskedLM(mlm_probability=0.3).mask(model, replace(batch, rng_key=(1, step))).labels != IGNORE
        by_word: dict[int, set[bool]] = {}
        for word, gone in zip(word_ids[1:-1], hidden.tolist()[1:-1]):
            by_word.setdefault(word, set()).add(gone)
        assert all(len(gone) == 1 for gone in by_word.values())
    single = row_of("wizardsquietly unboxing", whole_word_mask="off")
    assert single["token_targets"]["word_id"][1:-1] == list(range(len(single["labels"]) - 2))


@pytest.mark.skipif(importlib.util.find_spec("jieba") is None, reason="jieba is not installed")
def test_chinese_whole_words_from_jieba() -> None:
    by_character, by_word = row_of("今天天气怎么样"), row_of("今天天气怎么样", whole_word_mask="jieba")
    assert by_character["token_targets"]["word_id"][1:-1] == [0, 1, 2, 3, 4, 5, 6]
    assert by_word["token_targets"]["word_id"][1:-1] == [0, 0, 0, 0, 1, 1, 1]  # 今天天气 怎么样


def test_jieba_missing_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from weitiao.objective.objectives import masked_lm

    masked_lm._jieba.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"jieba.*pip install 'weitiao\[jieba\]'"):
        row_of("今天", whole_word_mask="jieba")


def test_mask_is_function_of_step_and_row() -> None:
    rows = [row_of(WORDS * n) for n in (1, 2, 3)]
    model, batch = ready(rows)
    objective = MaskedLM()

    def of(row: int, rng_key: tuple[int, ...], chosen: list[int]) -> list[int]:
        packed = objective.mask(model, pack([rows[i] for i in chosen], chosen, rng_key=rng_key))
        at = packed.row_ids.index(row)
        return packed.input_ids[packed.bounds[at] : packed.bounds[at + 1]].tolist()

    assert of(1, (5, 3), [0, 1, 2]) == of(1, (5, 3), [1]) == of(1, (5, 3), [2, 1])
    assert len({tuple(of(1, rng_key, [1])) for rng_key in ((5, 3), (5, 4), (6, 3), ())}) == 4
    assert torch.equal(objective.mask(model, batch).input_ids, objective.mask(model, batch).input_ids)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    objective.mask(model, batch)
    assert torch.equal(state, torch.get_rng_state()), "torch's own random numbers are for dropout"


def test_long_text_windows_with_special_tokens() -> None:
    row = row_of(WORDS * 3)
    pieces = MaskedLM().windows(row, 20)
    first, last = row["input_ids"][0], row["input_ids"][-1]
    assert all(x["input_ids"][0] == first and x["input_ids"][-1] == last and len(x["input_ids"]) <= 20 for x in pieces)
    assert [t for x in pieces for t in x["input_ids"][1:-1]] == row["input_ids"][1:-1]
    assert [w for x in pieces for w in x["labels"][1:-1]] == row["labels"][1:-1]
    word_ids = [x["token_targets"]["word_id"][1:-1] for x in [row, *pieces]]
    assert sum(word_ids[1:], []) == word_ids[0]
    kept, lost = MaskedLM().cut(row, 20)
    assert kept == pieces[0] and [*kept["input_ids"][:-1], *lost, last] == row["input_ids"]
    drawn = MaskedLM().preview(row, [], PROCESSOR)
    assert {kind for kind, _ in drawn} == {"target", "context"}


# -- the head ---------------------------------------------------------------------------------------------------------

FAMILIES = {"bert": {}, "roberta": {}, "distilbert": {}, "electra": {"embedding_size": 16}, "modernbert": {},
            "albert": {"embedding_size": 16}, "mpnet": {}}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_mlm_head_equals_transformers(family: str, tmp_path: Path) -> None:
    """Its weights are read from a checkpoint of the family, and its logits are those of AutoModelForMaskedLM."""
    small = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 1, **ENCODERS.get(family, {})}
    config = AutoConfig.for_model(family, **{**small, **more, **FAMILIES[family]})
    torch.manual_seed(0)
    whole = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    whole.save_pretrained(tmp_path)
    head, choice = masked_head(whole.base_model, tmp_path)
    assert choice.value == "checkpoint"
    ids = torch.tensor([[5, 9, 40, 200, 17]])
    with torch.no_grad():
        hidden = whole.base_model(input_ids=ids).last_hidden_state
        ours = head(hidden) @ whole.get_input_embeddings().weight.T + head.bias
        assert torch.allclose(ours, whole(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_untied_head_refused() -> None:
    model = attached("full", "bert").model
    model.config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="tie_word_embeddings: false"):
        masked_head(model)


def test_loss_equals_cross_entropy_over_masked() -> None:
    model, batch = ready([row_of(WORDS * n) for n in (1, 2)])
    objective = MaskedLM()
    shown, head = objective.mask(model, batch), model.heads[MASKED]
    logits = head(model.hidden(shown)) @ model.model.get_input_embeddings().weight.T + head.bias
    by_hand = torch.nn.functional.cross_entropy(logits, shown.labels, ignore_index=IGNORE, reduction="sum")
    loss = objective.loss(model, batch).totals["masked_lm"]
    assert torch.allclose(loss, by_hand, rtol=1e-5)
    ours = torch.autograd.grad(loss, [model.model.get_input_embeddings().weight, head.bias])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in
               zip(ours, torch.autograd.grad(by_hand, [model.model.get_input_embeddings().weight, head.bias])))  # fmt: skip
    said = objective.predict(model, batch)
    best = logits.argmax(-1)
    parts = zip(best.split(list(batch.lengths)), shown.labels.split(list(batch.lengths)))
    assert [(x.num_right, len(x.tokens)) for x in said] == [
        (int((p == y).sum()), int((y != IGNORE).sum())) for p, y in parts
    ]


# -- whole trips ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("encoder") / "bert", "bert")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    words = WORDS.split()
    return write_jsonl(tmp_path / "texts.jsonl", [{"text": " ".join(words[i % 5 :] + [str(i)])} for i in range(60)])


def test_trains_reopens_fills_and_is_base(train_tiny: Any, encoder: Path, texts: Path, tmp_path: Path) -> None:
    run = train_tiny(
        base=str(encoder),
        data=[{"path": str(texts)}],
        objective="masked_lm",
        method={"name": "full"},
        train={"steps": 160, "batch_size": 16, "learning_rate": 5e-3, "evaluate_every": 80},
        evaluate={"metrics": "auto", "samples": 2},
    )
    scores = run.read("scores.json")
    assert scores["after"]["loss"]["value"] < 0.6 * scores["before"]["loss"]["value"]
    before, after = (scores[when]["masked_accuracy"] for when in ("before", "after"))
    assert after["low"] > before["high"] and after["higher_is_better"]
    assert run.decisions["model.mlm_head"].value == "new"
    again = evaluate(str(run.folder), DESK)
    assert again["loss"].value == pytest.approx(scores["after"]["loss"]["value"], rel=1e-6)
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"text": "the quick [MASK] fox"}, {"text": "nothing to fill"}])
    done = predict_file(open_model(str(run.folder)), str(asked), str(tmp_path / "o.jsonl"), DESK)
    assert (done.rows, done.bad) == (1, 1) and "no [MASK] to fill" in (tmp_path / "o.jsonl.bad_rows.jsonl").read_text()
    labelled = write_jsonl(tmp_path / "l.jsonl", [{"text": f"the fox {i}", "label": "ab"[i % 2]} for i in range(24)])
    upper = train_tiny(base=str(run.folder), data=[{"path": str(labelled)}], objective="classification", method="full",
                  train={"steps": 2}, out=str(tmp_path / "upper"))  # fmt: skip
    told = str(upper.decisions["base"].reason)
    assert upper.is_finished and "(full, without its head)" in told


def test_base_from_config_has_head(train_tiny: Any, tmp_path: Path, texts: Path) -> None:
    from make_small_bert import characters, make

    text = tmp_path / "small.txt"
    text.write_text(WORDS + "今天天气")
    make(tmp_path / "small", characters(iter([text.read_text()]), 1), 2, 32, 4, 64, seed=1)
    run = train_tiny(base=str(tmp_path / "small"), data=[{"path": str(texts)}], objective="masked_lm", method="full",
                train={"steps": 2})  # fmt: skip
    assert run.is_finished and run.decisions["model.mlm_head"].value == "checkpoint"
    assert run.read("resolved.json")["data"]["split"] > 0, "characters are many: some text was longer than the context"


def test_decoder_refused_before_loading(train_tiny: Any, texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weitiao.pipeline.assemble.load", lambda *_: pytest.fail("something was loaded"))
    with pytest.raises(RecipeError, match="masked_lm needs an encoder-only model"):
        train_tiny(data=[{"path": str(texts)}], objective="masked_lm")


def test_tokenizer_without_mask_token_refused() -> None:
    blind = ChatProcessor(PROCESSOR.tokenizer, special_tokens=SpecialTokens((), (), (0,)))
    with pytest.raises(Exception, match="has none"):
        MaskedLM().rows(Text("the fox"), blind)
