"""Targets are encoded as targets: Marian's second vocabulary, language codes of mBART, as in transformers."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
)

from support.rows import write_jsonl
from weitiao.core.architecture import Architecture
from weitiao.core.errors import DataError, RecipeError
from weitiao.core.method import Method
from weitiao.core.recipe import make_recipe
from weitiao.core.registry import create, find
from weitiao.core.reporter import Reporter
from weitiao.pipeline import inference as results
from weitiao.pipeline import merging
from weitiao.pipeline.load import open_base_assets
from weitiao.pipeline.train import train
from weitiao.plan.compatibility import check_base

SOURCE, TARGET = "abcdefgh", "qrstuvwx"
SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64, "dropout": 0.0,
         "attention_dropout": 0.0, "activation_dropout": 0.0}  # fmt: skip


def pairs(count: int) -> list[dict[str, str]]:
    """Words of one made-up language, and the same words in another, which shares no letter with it."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SOURCE, k=3)) for _ in range(12)]
    texts = [" ".join(draw.choices(words, k=3)) for _ in range(count)]
    return [{"source": x, "target": x.translate(str.maketrans(SOURCE, TARGET))} for x in texts]


def save_marian(folder: Path, separate: bool = False, codes: tuple[str, ...] = ()) -> Path:
    spm = pytest.importorskip("sentencepiece")
    folder.mkdir(parents=True)
    pieces: list[list[str]] = []
    for side in ("source", "target"):
        text = folder / f"{side}.txt"
        text.write_text("\n".join(x[side] for x in pairs(200)))
        spm.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / side), vocab_size=60, hard_vocab_limit=False, minloglevel=2
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
        model = spm.SentencePieceProcessor(model_file=str(folder / f"{side}.spm"))
        pieces.append([model.id_to_piece(i) for i in range(3, model.get_piece_size())])
    import json

    vocabulary = ["</s>", "<unk>", *codes, *dict.fromkeys([*pieces[0], *pieces[1]]), "<pad>"]
    ids = {piece: i for i, piece in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids))
    files = [str(folder / x) for x in ("source.spm", "target.spm", "vocab.json")]
    MarianTokenizer(*files).save_pretrained(folder)
    pad = ids["<pad>"]
    config = MarianConfig(vocab_size=len(ids), pad_token_id=pad, eos_token_id=0, decoder_start_token_id=pad,
                          forced_eos_token_id=0, **SMALL)  # fmt: skip
    torch.manual_seed(0)
    MarianMTModel(config).save_pretrained(folder)
    return folder


def save_with_codes(folder: Path, tokenizer_class: Any) -> Path:
    codes = ["en_XX", "fr_XX"] if tokenizer_class is MBartTokenizer else ["eng_Latn", "fra_Latn"]
    letters = [f"{x}{c}" for x in ("▁", "") for c in SOURCE + TARGET]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *letters, *codes, "<mask>"]
    scored = [(x, -3.0 if x in letters else -4.0 if x == "▁" else 0.0) for x in pieces]
    merges = [("▁", c) for c in SOURCE + TARGET]
    if tokenizer_class is MBartTokenizer:
        tokenizer = tokenizer_class(vocab=scored)
    else:
        tokenizer = tokenizer_class(vocab={x: i for i, x in enumerate(pieces)}, merges=merges)
    tokenizer.save_pretrained(folder)
    common = {"vocab_size": len(tokenizer), "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, **SMALL}
    torch.manual_seed(0)
    if tokenizer_class is MBartTokenizer:
        model: Any = MBartForConditionalGeneration(MBartConfig(**common))
    else:
        model = M2M100ForConditionalGeneration(M2M100Config(**common, decoder_start_token_id=2))
    model.save_pretrained(folder)
    return folder


def learned(base: Path, tmp_path: Path, rows: list[dict], **objective: Any) -> Any:
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"steps": 240, "batch_size": 12, "learning_rate": 5e-3, "precision": "fp32", "evaluate_every": 0}
    plain = {"base": str(base), "data": str(data), "validation": 0, "method": "full", "train": settings}
    plain |= {"objective": {"name": "seq2seq", "max_new_tokens": 24, **objective}}
    plain |= {"evaluate": {"metrics": ["loss"], "samples": 0}, "out": str(tmp_path / "run")}
    return train(make_recipe(plain), Reporter(Console(quiet=True)))


def assert_plain_library_agrees(run: Any, tmp_path: Path, rows: list[dict], source_language: str = "") -> None:
    """Ours, and plain transformers on the merged folder: the same answers, which are right."""
    ours = [x["predicted"] for x in results.open_model(str(run.folder), "fp32").predict(rows)]
    merging.merge_run(str(run.folder), str(tmp_path / "out"))
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    if source_language:
        tokenizer.src_lang = source_language
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out")
    theirs = []
    for row in rows:
        out = model.generate(**tokenizer(row["source"], return_tensors="pt"), max_new_tokens=24, num_beams=1)
        theirs.append(tokenizer.decode(out[0], skip_special_tokens=True).strip())
    assert ours == theirs
    assert sum(x == row["target"] for x, row in zip(ours, rows)) >= 0.8 * len(rows)


def test_marian_targets_by_the_second_vocabulary(tmp_path: Path) -> None:
    base, rows = save_marian(tmp_path / "marian"), pairs(12)
    assets = open_base_assets(str(base))
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    objective: Any = find("objective", "seq2seq")()
    from weitiao.core.example import SourceTarget

    (row,) = objective.rows(SourceTarget(rows[0]["source"], rows[0]["target"]), assets.processor)
    theirs = tokenizer(rows[0]["source"], text_target=rows[0]["target"])
    assert [x for x in row["labels"] if x >= 0] == list(theirs.labels) and tokenizer.unk_token_id not in theirs.labels
    assert list(row["input_ids"][: len(theirs.input_ids)]) == list(theirs.input_ids)
    assert row["input_ids"][len(theirs.input_ids)] == tokenizer.pad_token_id, "the decoder starts with <pad>"
    assert_plain_library_agrees(learned(base, tmp_path, rows), tmp_path, rows)


def test_special_tokens_in_targets_stay_text(tmp_path: Path) -> None:
    processor = open_base_assets(str(save_marian(tmp_path / "marian"))).processor
    assert processor.target("qrs</s> tuv", None, None).ids.count(processor.eos_id) == 1
    assert processor._decoder_start_id not in processor.source("abc<pad> def", None, None)


def test_marian_of_several_languages_needs_a_code(tmp_path: Path) -> None:
    base = save_marian(tmp_path / "marian", codes=(">>fr<<", ">>de<<"))
    processor = open_base_assets(str(base)).processor
    with pytest.raises(DataError, match="name objective.target_language. There are: fr, de"):
        processor.source("abc", None, None)
    with pytest.raises(DataError, match="target_language: the base has no language 'it'. There are: fr, de"):
        processor.source("abc", None, "it")
    assert processor.source("abc", None, "fr")[0] == processor.source(">>fr<< abc", None, None)[0] == 2


@pytest.mark.parametrize(("tokenizer_class", "codes"), [(MBartTokenizer, ("en_XX", "fr_XX")),
                                                        (NllbTokenizer, ("eng_Latn", "fra_Latn"))])  # fmt: skip
def test_language_codes(tmp_path: Path, tokenizer_class: Any, codes: tuple[str, str]) -> None:
    base, rows = save_with_codes(tmp_path / "base", tokenizer_class), pairs(12)
    with pytest.raises(DataError, match="name objective.source_language. There are: "):
        learned(base, tmp_path, rows)
    with pytest.raises(DataError, match="objective.target_language: the base has no language 'fr'"):
        learned(base, tmp_path, rows, source_language=codes[0], target_language="fr")
    run = learned(base, tmp_path, rows, source_language=codes[0], target_language=codes[1])
    assert_plain_library_agrees(run, tmp_path, rows, codes[0])


def test_loss_is_that_of_transformers(tmp_path: Path) -> None:
    """mBART: inputs and labels by `text_target`, and its own shift to the right; NLLB: the same."""
    from weitiao.core.batch import pack
    from weitiao.core.example import SourceTarget
    from weitiao.pipeline.load import load

    for number, (tokenizer_class, codes) in enumerate(
        ((MBartTokenizer, ("en_XX", "fr_XX")), (NllbTokenizer, ("eng_Latn", "fra_Latn")))
    ):
        base = save_with_codes(tmp_path / str(number), tokenizer_class)
        tokenizer: Any = AutoTokenizer.from_pretrained(base, src_lang=codes[0], tgt_lang=codes[1])
        inputs = tokenizer("abc def", text_target="qrs tuv", return_tensors="pt")
        objective: Any = find("objective", "seq2seq")(source_language=codes[0], target_language=codes[1])
        assets = open_base_assets(str(base))
        model = load(assets, Method.untouched(), objective, torch.float32, torch.device("cpu"))[0]
        rows = objective.rows(SourceTarget("abc def", "qrs tuv"), assets.processor)
        with torch.no_grad():
            ours = float(objective.loss(model, pack(rows)).totals["seq2seq"])
            out = AutoModelForSeq2SeqLM.from_pretrained(base)(**inputs)
        labels = inputs["labels"][0]
        if tokenizer_class is MBartTokenizer:
            labels = labels[:-1]  # transformers also trains on the code behind </s>, which is never generated
        theirs = -out.logits[0, : len(labels)].log_softmax(-1).gather(1, labels[:, None]).sum()
        assert ours == pytest.approx(float(theirs), rel=1e-5)


def test_codes_refused_where_there_are_none(tmp_path: Path) -> None:
    from support.models import save_model

    processor = open_base_assets(str(save_model(tmp_path / "t5", "t5"))).processor
    with pytest.raises(DataError, match="has no language codes; leave out source_language and target_language"):
        processor.source("the fox", "en", "fr")
    assert processor.target("the fox", None, None).ids == [*processor.text("the fox"), processor.eos_id]


def test_family_with_two_vocabularies_refused() -> None:
    architecture = Architecture("encoder_decoder", "fsmt")
    with pytest.raises(RecipeError, match="family fsmt has two vocabularies"):
        check_base(create("objective", "seq2seq"), Method.untouched(), architecture)  # type: ignore[arg-type]
