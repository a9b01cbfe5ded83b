"""Speech: features equal transformers', bad audio is named, changed audio stops a resumed run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import GenerationMixin, WhisperForConditionalGeneration

from support.command import weitiao
from support.models import save_model
from support.rows import write_jsonl
from support.runs import assert_same_run, run_contents, stop_at
from support.speech import ENCODER_POSITIONS, save_whisper, speech_rows, tone, write_wav
from weitiao.core.batch import AUDIO_PLACEHOLDER, IGNORE, INPUT_FEATURES, pack, select_segments
from weitiao.core.errors import DataError, Interrupted, RecipeError, RunError
from weitiao.core.example import AudioText
from weitiao.core.method import Method
from weitiao.core.recipe_sections import Source
from weitiao.core.registry import create, find, names
from weitiao.core.reporter import Reporter
from weitiao.core.trainable_model import evaluating
from weitiao.data.audio import decode_audio, resample
from weitiao.data.read import read_sources
from weitiao.model.backbone.encoder_decoder import source_and_target
from weitiao.objective.objectives.seq2seq import Seq2Seq
from weitiao.pipeline.evaluate import evaluate
from weitiao.pipeline.inference import open_model
from weitiao.pipeline.load import BaseAssets, load, open_base_assets
from weitiao.pipeline.predict import predict_file

CPU, DESK = torch.device("cpu"), Reporter(Console(quiet=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper in `whisper`, and tones in `rows.jsonl`."""
    folder = tmp_path_factory.mktemp("speech")
    save_whisper(folder / "whisper")
    speech_rows(folder)
    return folder


def opened(folder: Path, method: str = "lora", **settings: Any) -> tuple[BaseAssets, Any, Seq2Seq]:
    tokens, objective = open_base_assets(str(folder)), Seq2Seq(**{"max_new_tokens": 12, **settings})
    torch.manual_seed(0)
    part: Any = create(Method, method)
    return tokens, load(tokens, part, objective, torch.float32, CPU)[0], objective


def examples_of(place: Path) -> list[Any]:
    return [x.example for x in read_sources([Source(path=str(place / "rows.jsonl"))], Seq2Seq(), 0.0).examples]


def recipe_of(place: Path, **more: Any) -> dict[str, Any]:
    return {
        "base": str(place / "whisper"),
        "data": [{"path": str(place / "rows.jsonl")}],
        "validation": {"path": str(place / "rows.jsonl")},
        "objective": {"name": "seq2seq", "max_new_tokens": 12},
        "evaluate": {"metrics": "auto", "samples": 2},
        **more,
    }


# -- rows -------------------------------------------------------------------------------------------------------------


def test_row_is_features_prompt_text(place: Path) -> None:
    tokens, _, objective = opened(place / "whisper")
    example = examples_of(place)[0]
    (row,) = objective.rows(example, tokens.processor)
    ids, labels = list(row["input_ids"]), list(row["labels"])
    assert (
        ids[:ENCODER_POSITIONS] == [AUDIO_PLACEHOLDER] * ENCODER_POSITIONS
        and labels[:ENCODER_POSITIONS] == [IGNORE] * ENCODER_POSITIONS
    )
    begun = tokens.tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    said = tokens.tokenizer(" paris", add_special_tokens=False).input_ids
    assert ids[ENCODER_POSITIONS:] == [*begun, *said] and labels[ENCODER_POSITIONS:] == [
        IGNORE,
        *said,
        tokens.processor.eos_id,
    ]
    assert objective.num_positions(row) == len(begun) + len(said)
    assert [kind for kind, _ in objective.preview(row, [], tokens.processor)] == ["context", "context", "target"]
    assert ("context", "[0.wav]") in objective.preview(row, [], tokens.processor)


def test_features_equal_transformers(place: Path) -> None:
    """Of the samples as the file has them, in the order of the batch's rows; and they stay when rows are chosen."""
    from transformers import WhisperFeatureExtractor

    tokens, _, objective = opened(place / "whisper")
    examples = examples_of(place)[:5]
    batch = pack([objective.rows(x, tokens.processor)[0] for x in examples])
    make = WhisperFeatureExtractor.from_pretrained(place / "whisper")
    for i, x in zip(batch.row_ids, batch.more[INPUT_FEATURES]):
        samples = np.round(tone((300 if i % 2 else 2400) + 9 * i, 0.3 + 0.02 * i) * 32767 - 0.5) / 32768
        wanted = make(samples, sampling_rate=16_000, return_tensors="pt").input_features[0]
        assert x.shape == (80, 2 * ENCODER_POSITIONS) and float((x - wanted).abs().max()) < 2e-2
    some = select_segments(batch, [3, 1])
    assert (
        torch.equal(some.more[INPUT_FEATURES], batch.more[INPUT_FEATURES][[3, 1]])
        and source_and_target(some)[1][1] - some.bounds[1] == ENCODER_POSITIONS
    )
    again = pack(batch.rows)
    assert torch.equal(again.more[INPUT_FEATURES], batch.more[INPUT_FEATURES])


def test_audio_resampled_to_16_khz_mono(tmp_path: Path) -> None:
    """A tone stays that tone, as loud as before, and what 16 kHz cannot hold does not fold back."""
    for rate in (8_000, 22_050, 44_100, 48_000):
        both = np.stack([tone(440, 0.5, rate), tone(440, 0.5, rate)], 1)
        input_features = decode_audio(write_wav(tmp_path / "x.wav", both, rate).read_bytes(), "x.wav")
        assert abs(len(input_features) - 8000) <= 1 and input_features.dtype == np.float32
        middle = input_features[1000:7000]
        assert float(np.abs(middle - tone(440, 0.5)[1000:7000]).max()) < 2e-2, rate
    high = resample(tone(11_000, 0.5, 48_000), 48_000)
    assert float(np.abs(high[500:-500]).max()) < 5e-3


def test_flac_and_float_wav(tmp_path: Path) -> None:
    import soundfile

    wanted = tone(500)
    for name, kind in (("a.flac", "PCM_16"), ("a.wav", "FLOAT")):
        soundfile.write(tmp_path / name, wanted, 16_000, subtype=kind)
        assert float(np.abs(decode_audio((tmp_path / name).read_bytes(), name) - wanted).max()) < 1e-4


# -- the model --------------------------------------------------------------------------------------------------------


def test_loss_equals_transformers_and_rows_isolated(place: Path) -> None:
    tokens, model, objective = opened(place / "whisper")
    rows = [objective.rows(x, tokens.processor)[0] for x in examples_of(place)[:4]]
    batch = pack(rows)
    told = dict(zip(batch.row_ids, objective.segment_losses(model, batch)))
    for i, row in enumerate(rows):
        alone = pack([row])
        ids, labels = (torch.tensor([list(row[key])[ENCODER_POSITIONS:]]) for key in ("input_ids", "labels"))
        out = model.model(input_features=alone.more[INPUT_FEATURES], decoder_input_ids=ids)
        by_hand = torch.nn.functional.cross_entropy(out.logits[0], labels[0], ignore_index=IGNORE, reduction="sum")
        assert told[i][0] == pytest.approx(float(by_hand.detach()), rel=1e-5)
        assert objective.segment_losses(model, alone)[0] == pytest.approx(told[i], rel=1e-5)
    assert model.hidden(batch).shape == (batch.tokens, 32)


@pytest.mark.parametrize("beams", [1, 3])
def test_transcription_equals_transformers(place: Path, beams: int) -> None:
    tokens, model, objective = opened(place / "whisper", num_beams=beams, max_new_tokens=9)
    rows = [objective.encode_input(x, tokens.processor) for x in examples_of(place)[:4]]
    batch = pack(rows)
    written = dict(zip(batch.row_ids, objective.predict(model, batch)))
    begun = tokens.processor.feature_extractor.decoder_prompt_ids(None)
    with evaluating(model):
        for i, row in enumerate(rows):
            kind = {
                "num_beams": beams,
                "do_sample": False,
                "max_new_tokens": 9,
                "eos_token_id": list(model.processor.stop_ids),
            }
            ids = GenerationMixin.generate(
                model.model,
                input_features=pack([row]).more[INPUT_FEATURES],
                decoder_input_ids=torch.tensor([begun]),
                **kind,
            )
            assert written[i] == tokens.processor.decode(ids[0].tolist()).strip()


def test_greedy_decoding(place: Path) -> None:
    """By hand: no cache, no library."""
    tokens, model, objective = opened(place / "whisper", max_new_tokens=9)
    batch = pack([objective.encode_input(examples_of(place)[1], tokens.processor)])
    (written,) = objective.predict(model, batch)
    ids = torch.tensor([tokens.processor.feature_extractor.decoder_prompt_ids(None)])
    with evaluating(model), torch.no_grad():
        for _ in range(9):
            best = model.model(input_features=batch.more[INPUT_FEATURES], decoder_input_ids=ids).logits[0, -1].argmax()
            ids = torch.cat([ids, best.view(1, 1)], 1)
            if int(best) in model.processor.stop_ids:
                break
    assert written == tokens.processor.decode(ids[0].tolist()).strip()


def test_answer_within_decoder_positions(place: Path) -> None:
    tokens, model, objective = opened(place / "whisper", max_new_tokens=1000)
    batch = pack([objective.encode_input(examples_of(place)[0], tokens.processor)])
    assert len(objective.predict(model, batch)) == 1
    assert tokens.max_length == 64


METHODS = ["full", "freeze", "lora", "bitfit", "dora", "adapter", "ia3", "ln_tuning"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(place: Path, method: str) -> None:
    tokens, model, objective = opened(place / "whisper", method)
    batch = pack([objective.rows(x, tokens.processor)[0] for x in examples_of(place)[:3]])
    objective.loss(model, batch).totals["seq2seq"].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.trainable().values())


# -- a run ------------------------------------------------------------------------------------------------------------


def test_trains_and_reopens(train_tiny: Any, place: Path, tmp_path: Path) -> None:
    train = {"steps": 60, "batch_size": 8, "learning_rate": 5e-3, "evaluate_every": 0}
    run = train_tiny(**recipe_of(place, method="full", train=train))
    scores = run.read("scores.json")
    assert list(scores["after"]) == ["loss", "wer", "cer"] and scores["after"]["wer"]["n"] == 24
    assert scores["before"]["wer"]["value"] > 0.9 and scores["after"]["wer"]["value"] < 0.4
    again = evaluate(str(run.folder), DESK)
    assert {name: x.value for name, x in again.items()} == pytest.approx(
        {name: x["value"] for name, x in scores["after"].items()}
    )
    new = write_jsonl(place / "new.jsonl", [{"id": i, "audio": f"clips/{i}.wav"} for i in (0, 1, 2)])
    code, told = weitiao("predict", run.folder, "--input", new, "--output", tmp_path / "out.jsonl")
    assert code == 0, told
    said = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [x["id"] for x in said] == [0, 1, 2] and said[0]["predicted"].startswith("paris")
    code, told = weitiao("merge", run.folder, tmp_path / "merged")
    assert code == 0, told
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    plain = AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "merged")
    assert (tmp_path / "merged" / "preprocessor_config.json").exists() and plain.config.model_type == "whisper"
    assert AutoProcessor.from_pretrained(tmp_path / "merged").feature_extractor.chunk_length == 1
    reopened = predict_file(open_model(str(tmp_path / "merged")), str(new), str(tmp_path / "merged.jsonl"), DESK)
    assert reopened.rows == 3
    theirs = [json.loads(x)["predicted"] for x in (tmp_path / "merged.jsonl").read_text().splitlines()]
    assert theirs == [x["predicted"] for x in said]


def test_peft_opens_adapter(train_tiny: Any, place: Path) -> None:
    from peft import PeftModel

    train = {"steps": 3, "batch_size": 8, "learning_rate": 3e-2, "evaluate_every": 0}
    run = train_tiny(**recipe_of(place, method={"name": "lora", "rank": 2}, train=train, evaluate={"metrics": ["loss"]}))
    base = WhisperForConditionalGeneration.from_pretrained(place / "whisper")
    given = {"input_features": torch.rand(1, 80, 2 * ENCODER_POSITIONS), "decoder_input_ids": torch.tensor([[5, 6, 7]])}
    before = base.eval()(**given).logits.detach()
    theirs = PeftModel.from_pretrained(base, str(run.folder / "adapter")).eval()(**given).logits.detach()
    ours = open_model(str(run.folder)).model.model.eval()(**given).logits.detach()
    assert float((ours - theirs).abs().max()) < 1e-5 * float(ours.abs().max())
    assert float((ours - before).abs().max()) > 1e-3


@pytest.mark.parametrize("method", ["full", "lora"])
def test_resume_bit_exact(
    method: str, train_tiny: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, shuffling and validation in between."""
    train = {"steps": 4, "batch_size": 8, "micro_batch_tokens": 130, "evaluate_every": 2}
    shape = recipe_of(place, method={"name": method}, train=train)
    whole = run_contents(train_tiny(**shape, out=str(tmp_path / "whole")))
    for step in (1, 3):
        out = str(tmp_path / f"stopped-{step}")
        with stop_at(step, monkeypatch), pytest.raises(Interrupted):
            train_tiny(**shape, out=out)
        torch.manual_seed(12345)
        assert_same_run(run_contents(train_tiny(again=True, **shape, out=out)), whole)


def test_resume_changed_audio_refused(
    train_tiny: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "clips", tmp_path / "clips")
    shutil.copy(place / "rows.jsonl", tmp_path)
    shape = recipe_of(place, train={"steps": 3, "batch_size": 8}, method="bitfit")
    shape |= {"data": [{"path": str(tmp_path / "rows.jsonl")}], "out": str(tmp_path / "run")}
    with stop_at(1, monkeypatch), pytest.raises(Interrupted):
        train_tiny(**shape)
    write_wav(tmp_path / "clips" / "3.wav", tone(777))
    with pytest.raises(RunError, match="data"):
        train_tiny(again=True, **shape)


def test_audio_changed_during_training_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "clips", tmp_path / "clips")
    shutil.copy(place / "rows.jsonl", tmp_path)
    tokens, _, objective = opened(place / "whisper")
    (row,) = objective.rows(examples_of(tmp_path)[0], tokens.processor)
    write_wav(tmp_path / "clips" / "0.wav", tone(777))
    with pytest.raises(DataError, match="0.wav has changed since the data were read"):
        pack([row])
    (tmp_path / "clips" / "0.wav").unlink()
    with pytest.raises(DataError, match="0.wav has been removed since the data were read"):
        pack([row])


def test_unusable_audio_set_aside(train_tiny: Any, place: Path, tmp_path: Path) -> None:
    """File, line and reason of each; the rest is trained on."""
    speech_rows(tmp_path)
    (tmp_path / "clips" / "empty.wav").write_bytes(b"")
    (tmp_path / "clips" / "text.wav").write_text("this is no sound")
    write_wav(tmp_path / "clips" / "short.wav", np.zeros(0, np.float32))
    write_wav(tmp_path / "clips" / "silent.wav", np.zeros(800, np.float32))
    write_wav(tmp_path / "clips" / "long.wav", tone(300, 1.5))
    whole = (tmp_path / "clips" / "0.wav").read_bytes()
    (tmp_path / "clips" / "header.wav").write_bytes(whole[:20])
    bad = {
        "missing.wav": "there is no audio file .*clips/missing.wav",
        "empty.wav": "empty.wav is empty",
        "text.wav": "text.wav cannot be decoded",
        "short.wav": "short.wav has no samples",
        "silent.wav": "silent.wav is silent",
        "header.wav": "header.wav (cannot be decoded|has no samples)",
        "long.wav": "long.wav is 1.5 s long, but the model takes 1 s",
    }
    rows = [{"audio": f"clips/{name}", "text": "paris"} for name in bad]
    rows += [{"audio": "clips/1.wav", "text": "  "}, {"audio": "", "text": "paris"}, {"audio": "clips/1.wav"}]
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write("".join(json.dumps(x) + "\n" for x in rows))
    shape = recipe_of(place, data=[{"path": str(tmp_path / "rows.jsonl")}], max_bad_fraction=0.5, method="bitfit")
    run = train_tiny(**shape, train={"steps": 1, "batch_size": 4, "evaluate_every": 0})
    told = {x["line"]: x["reason"] for x in run.read("bad_rows.jsonl")}
    for line, words in enumerate(bad.values(), 25):
        assert re.search(words, told[line]), told[line]
    assert "empty" in told[32] and "names no audio file" in told[33] and "is missing" in told[34]
    assert run.read("resolved.json")["data"]["rows"] == 24 and len(told) == 10


def test_predict_bad_audio_set_aside(train_tiny: Any, place: Path, tmp_path: Path) -> None:
    run = train_tiny(**recipe_of(place, method="bitfit", train={"steps": 1, "batch_size": 4, "evaluate_every": 0}))
    rows = write_jsonl(place / "some.jsonl", [{"clip": "clips/0.wav"}, {"clip": "none.wav"}])
    done = predict_file(open_model(str(run.folder)), str(rows), str(tmp_path / "out.jsonl"), DESK, text="clip")
    assert (done.rows, done.bad) == (1, 1)
    (refused,) = [json.loads(x) for x in (tmp_path / "out.jsonl.bad_rows.jsonl").read_text().splitlines()]
    assert refused["line"] == 2 and "there is no audio file" in refused["reason"]


def test_base_evaluated_and_used_without_training(place: Path, tmp_path: Path) -> None:
    found = evaluate(str(place / "whisper"), DESK, data=str(place / "rows.jsonl"), metrics=("wer",), limit=4)
    assert found["wer"].n == 4
    done = predict_file(open_model(str(place / "whisper")), str(place / "rows.jsonl"), str(tmp_path / "out.jsonl"), DESK)
    assert done.rows == 24


def test_column_names_and_csv(place: Path) -> None:
    (place / "rows.csv").write_text('clip,words\nclips/0.wav,"paris, fox"\n')
    source = Source(path=str(place / "rows.csv"), columns={"audio": "clip", "text": "words"})
    (read,) = read_sources([source], Seq2Seq(), 0.0).examples
    assert isinstance(read.example, AudioText) and read.example.target == "paris, fox" and len(read.example.sha256) == 64


def test_split_by_transcript(train_tiny: Any, place: Path) -> None:
    """The same sentence in two voices is never on both sides."""
    run = train_tiny(**recipe_of(place, validation=0.3, method="bitfit", train={"steps": 1, "batch_size": 4}))
    assert "transcript" in str(run.decisions["validation.rows"].reason)


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_multilingual_base_needs_language(tmp_path: Path, place: Path) -> None:
    tokens = open_base_assets(str(save_whisper(tmp_path / "several", multilingual=True)))
    example = examples_of(place)[0]
    with pytest.raises(RecipeError, match="this base is multilingual; set one of: en, zh"):
        Seq2Seq().rows(example, tokens.processor)
    (row,) = Seq2Seq(language="zh").rows(example, tokens.processor)
    begun = ["<|startoftranscript|>", "<|zh|>", "<|transcribe|>", "<|notimestamps|>"]
    assert list(row["input_ids"])[ENCODER_POSITIONS : ENCODER_POSITIONS + 4] == tokens.tokenizer.convert_tokens_to_ids(
        begun
    )
    with pytest.raises(RecipeError, match="this base is English-only"):
        Seq2Seq(language="zh").rows(example, open_base_assets(str(place / "whisper")).processor)


def test_text_for_speech_model_and_audio_for_text_model_refused(train_tiny: Any, place: Path, tmp_path: Path) -> None:
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"source": f"fox {i}", "target": "dog"} for i in range(9)])
    with pytest.raises(DataError, match="these rows are text, but the base is a speech model"):
        train_tiny(**recipe_of(place, data=[{"path": str(texts)}], validation=0))
    reader = save_model(tmp_path / "bart", "bart")
    with pytest.raises(DataError, match="the base is a text model. Use a speech model"):
        train_tiny(**recipe_of(place, base=str(reader), validation=0))


@pytest.mark.parametrize("method", [x for x in names(Method) if not find(Method, x).encoder_decoder])
def test_virtual_token_methods_refused(train_tiny: Any, place: Path, method: str) -> None:
    with pytest.raises(RecipeError, match=f"{method} does not support encoder-decoder models"):
        train_tiny(**recipe_of(place, method=method))


def test_missing_feature_extractor_config_named(tmp_path: Path) -> None:
    folder = save_whisper(tmp_path / "whisper")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(Exception, match="preprocessor_config.json"):
        open_base_assets(str(folder))
