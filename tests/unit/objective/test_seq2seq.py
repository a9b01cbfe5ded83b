"""Encoder-decoder models: the loss equals transformers', rows are isolated, a reopened model generates what was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from support.command import weitiao
from support.models import ENCODER_DECODERS, save_model
from support.parts import method_settings
from support.rows import write_jsonl
from weitiao.core.batch import IGNORE, pack, select_segments
from weitiao.core.errors import RecipeError
from weitiao.core.example import SourceTarget
from weitiao.core.method import Method
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import create, find, names
from weitiao.core.reporter import Reporter
from weitiao.evaluate.metrics.rouge_l import lcs_f1
from weitiao.evaluate.words import split_words
from weitiao.model.backbone.encoder_decoder import group_by_length, source_and_target
from weitiao.objective.objectives.seq2seq import Seq2Seq
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.load import BaseAssets, load, open_base_assets
from weitiao.pipeline.predict import predict_file
from weitiao.plan.compatibility import check_regularizers

CPU, DESK = torch.device("cpu"), Reporter(Console(quiet=True))
METHODS = [name for name in names(Method) if find(Method, name).encoder_decoder and name != "f_learning"]
EXAMPLES = [SourceTarget("the quick fox " * (i + 1), f"lazy dog {'and ' * (i % 3)}{i}") for i in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("halves")
    return {family: save_model(place / family, family) for family in ENCODER_DECODERS}


def opened(folder: Path, method: str = "lora", **settings: Any) -> tuple[BaseAssets, Any, Seq2Seq]:
    tokens, objective = open_base_assets(str(folder)), Seq2Seq(**settings)
    torch.manual_seed(0)
    part: Any = create(Method, method, **method_settings(method))
    return tokens, load(tokens, part, objective, torch.float32, CPU)[0], objective


def rows_of(objective: Seq2Seq, tokens: BaseAssets) -> list[Any]:
    return [row for x in EXAMPLES for row in objective.rows(x, tokens.processor)]


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("method", METHODS)
def test_loss_equals_transformers(folders: dict[str, Path], family: str, method: str) -> None:
    """Row by row, from the labels alone: so the start token and the shift are right; and padding changes nothing."""
    tokens, model, objective = opened(folders[family], method)
    rows = rows_of(objective, tokens)
    batch = pack(rows)
    together = objective.segment_losses(model, batch)
    for place, row in enumerate(batch.row_ids):
        ids, labels = rows[row]["input_ids"], [x for x in rows[row]["labels"] if x != IGNORE]
        source = ids[: len(ids) - len(labels)]
        with torch.no_grad():
            out = model.model(input_ids=torch.tensor([source]), labels=torch.tensor([labels]))
        assert together[place][0] == pytest.approx(float(out.loss) * len(labels), rel=1e-5)
        assert together[place][1] == len(labels) == objective.counts(select_segments(batch, [place]))["seq2seq"]
        alone = objective.segment_losses(model, select_segments(batch, [place]))[0]
        assert alone[0] == pytest.approx(together[place][0], rel=1e-5)
    objective.loss(model, batch).totals["seq2seq"].backward()
    assert all(p.grad is not None for p in model.trainable().values())


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_rows_grouped_by_length(folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several groups, in the order they came in, and with the same gradients as in one."""
    tokens, model, objective = opened(folders[family], "full")
    batch, found = pack(rows_of(objective, tokens)), []
    monkeypatch.setattr("weitiao.model.backbone.encoder_decoder.NARROW", 1)
    for saved in (10**9, 1):
        monkeypatch.setattr("weitiao.model.backbone.encoder_decoder.MIN_SAVING", saved)
        groups = group_by_length(source_and_target(batch), saved)
        assert sorted(i for group in groups for i in group) == list(range(6)) and len(groups) == (1 if saved > 1 else 6)
        loss = objective.loss(model, batch).totals["seq2seq"]
        found.append([loss, *torch.autograd.grad(loss, list(model.trainable().values()))])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_label_smoothing_equals_torch(folders: dict[str, Path]) -> None:
    tokens, model, objective = opened(folders["t5"], label_smoothing=0.2)
    batch = pack(rows_of(objective, tokens))
    supervised = batch.labels != IGNORE
    logits = model.logits(batch)[supervised]
    by_hand = torch.nn.functional.cross_entropy(logits, batch.labels[supervised], label_smoothing=0.2, reduction="sum")
    assert float(objective.loss(model, batch).totals["seq2seq"].detach()) == pytest.approx(
        float(by_hand.detach()), rel=1e-5
    )


@pytest.mark.parametrize("family", ENCODER_DECODERS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_equals_transformers(folders: dict[str, Path], family: str, num_beams: int) -> None:
    """Sources of unequal length together, as each alone."""
    tokens, model, objective = opened(folders[family], num_beams=num_beams, max_new_tokens=9)
    batch = pack(rows_of(objective, tokens))
    written = dict(zip(batch.row_ids, objective.predict(model, batch)))
    model.model.generation_config.forced_eos_token_id = None  # BART's own setting, which is not inherited
    for i, x in enumerate(EXAMPLES):
        ids = torch.tensor([tokens.processor.text(x.text)])
        out = model.model.generate(input_ids=ids, max_new_tokens=9, num_beams=num_beams, do_sample=False)
        assert written[i] == tokens.processor.decode(out[0, 1:].tolist()).strip()


def test_long_row_truncated_on_both_sides(folders: dict[str, Path]) -> None:
    tokens, _, objective = opened(folders["t5"])
    (row,) = objective.rows(SourceTarget("fox " * 20, "dog " * 20), tokens.processor)
    ids, many = row["input_ids"], objective.num_positions(row)
    kept, lost = objective.cut(row, 7)
    assert objective.num_positions(kept) == 7 < many and len(kept["input_ids"]) == 14 == len(kept["labels"])
    assert sum(x != IGNORE for x in kept["labels"]) == 7 and len(lost) == len(ids) - 14
    short, none = objective.cut(objective.rows(EXAMPLES[0], tokens.processor)[0], 64)
    assert none == [] and len(short["input_ids"]) == len(objective.rows(EXAMPLES[0], tokens.processor)[0]["input_ids"])


def test_trains_and_reopens(train_tiny: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"source": f"{'fox' if i % 2 else 'dog'} {i}", "target": "paris" if i % 2 else "seven boxes"} for i in range(40)
    ]
    run = train_tiny(
        base=str(folders["bart"]),
        data=[{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows))}],
        validation=0.3,
        method="full",
        objective={"name": "seq2seq", "max_new_tokens": 12},
        train={"steps": 60, "batch_size": 8, "learning_rate": 3e-3, "evaluate_every": 0},
        evaluate={"metrics": ["loss", "exact_match", "rouge_l", "bleu", "chrf"], "samples": 2},
    )
    scores = run.read("scores.json")
    assert scores["before"]["exact_match"]["value"] < 0.2 and scores["after"]["exact_match"]["value"] > 0.8
    assert scores["after"]["chrf"]["value"] > 80 and scores["after"]["rouge_l"]["value"] > 0.8
    again = evaluate(str(run.folder), DESK)
    assert {name: x.value for name, x in again.items()} == pytest.approx(
        {name: x["value"] for name, x in scores["after"].items()}
    )
    method_settings = write_jsonl(tmp_path / "new.jsonl", [{"id": i, "text": row["source"]} for i, row in enumerate(rows)])
    done = predict_file(open_model(str(run.folder)), str(method_settings), str(tmp_path / "out.jsonl"), DESK)
    said = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert done.rows == 40 and [x["id"] for x in said] == list(range(40))
    assert sum(x["predicted"] == row["target"] for x, row in zip(said, rows)) > 32
    code, told = weitiao("merge", run.folder, tmp_path / "merged")
    assert code == 0, told
    from transformers import AutoModelForSeq2SeqLM

    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    ids = open_base_assets(str(tmp_path / "merged")).processor.text("fox 3")
    assert plain.generate(torch.tensor([ids]), max_new_tokens=12) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objective": "sft"}, "sft is not for encoder-decoder models.*Objectives for it: seq2seq"),
        ({"objective": "classification"}, "classification is not for encoder-decoder models"),
        ({"method": "prefix_tuning"}, "prefix_tuning does not support encoder-decoder models.*lora"),
        ({"base": "llama"}, "seq2seq needs an encoder-decoder model.*decoder-only model learns.*sft"),
    ],
)
def test_unsupported_combination_refused(
    train_tiny: Any, folders: dict[str, Path], tiny_llama: Path, tmp_path: Path, change: dict, words: str
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"source": f"fox {i}", "target": "dog"} for i in range(9)])
    shape = {"base": str(folders["t5"]), "data": str(rows), "objective": "seq2seq", **change}
    with pytest.raises(RecipeError, match=words):
        train_tiny(**{**shape, "base": str(tiny_llama) if change.get("base") == "llama" else shape["base"]})


def test_embedding_regularizers_refused() -> None:
    for name in ("neftune", "fgm"):
        recipe = make_recipe({"base": "b", "data": "d", "out": "o", "objective": "seq2seq", "regularizers": name})
        with pytest.raises(RecipeError, match="encoder and decoder have separate embeddings"):
            check_regularizers(recipe)


def test_rouge_l_longest_common_subsequence() -> None:
    assert lcs_f1(split_words("the gunman kill police"), split_words("police killed the gunman")) == pytest.approx(
        0.5
    )  # Lin's example
    assert split_words("二〇二四年5月") == ["二", "〇", "二", "四", "年", "5", "月"]
    assert lcs_f1([], []) == lcs_f1([], ["a"]) == 0.0  # as rouge-score
